"""`run.py evaluate` scores a base model and any saved PEFT adapter, and says clearly what it cannot score."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load, save

from dual_lora import methods, models
from dual_lora.commands import main
from dual_lora.commands.evaluate import scores_table
from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.methods import saved
from dual_lora.tasks.base import Head

SETTINGS = ["task=commonsense", "protocol=strict", "data.source=sample", "profile=quick"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter with random B, saved by PEFT alone."""
    (config,) = compose(["model=tiny_llama", "method=none", *SETTINGS])
    loaded = models.load(config.model, Head("causal_lm"), dtype="float32", seed=0, device="cpu")
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(loaded.model, settings).save_pretrained(folder)
    return folder


def evaluate(tmp_path, *arguments):
    out = tmp_path / "scores.json"
    code = main(["evaluate", f"out={out}", f"results={tmp_path}", *SETTINGS, *arguments])
    return code, json.loads(out.read_text()) if out.exists() else None


def test_an_adapter_and_its_base_are_scored(adapter, tmp_path, recwarn):
    code, base = evaluate(tmp_path / "base", "model=tiny_llama")
    assert code == 0
    assert base["adapter"] is None
    code, adapted = evaluate(tmp_path / "adapter", "model=tiny_llama", f"adapter={adapter}")
    assert code == 0
    assert {entry["checkpoint"] for entry in adapted["measurements"]} == {"adapter"}
    for scoring in ("generate", "likelihood", "cloze"):
        rows = [entry for entry in adapted["measurements"] if entry["scoring"] == scoring]
        assert len(rows) == 9
        assert rows[-1]["subset"] == "average"
        assert rows[-1]["items"] == 32
    texts = [next((tmp_path / name).rglob("base.test.cloze.jsonl")).read_text() for name in ("base", "adapter")]
    assert texts[0] != texts[1]  # the adapter took part
    told = [warning for warning in recwarn if "transformers" in warning.filename]
    assert not [one for one in told if issubclass(one.category, FutureWarning)], "of what a user cannot change"


def test_a_score_without_an_upper_bound_is_not_shown_in_percent():
    entry = {"subset": "e2e", "scoring": "generate", "metrics": {"BLEU": 0.65, "NIST": 8.4}, "at_chance": None}
    assert scores_table([entry], "E2E").rows == [["e2e", "65.0", "8.40"]]


def test_the_same_command_goes_on_where_it_was_stopped_and_times_only_what_it_made(tmp_path, capsys):
    _, whole = evaluate(tmp_path, "model=tiny_llama", "task.scorings=[generate]")
    assert whole["items_from_before"] == 0
    assert whole["items_per_second"] == pytest.approx(32 / whole["eval_seconds"])
    assert whole["notes"] == ["validation: 64 items instead of 512, a fifth of the 320 there are"]
    assert f"note: {whole['notes'][0]}\n" in capsys.readouterr().out
    (kept,) = tmp_path.rglob("*.generate.jsonl")
    lines = kept.read_text().splitlines()
    first = json.loads(lines[0])
    first["value"] = "the correct answer is answer1"
    kept.write_text("\n".join([json.dumps(first), *lines[1:20]]) + '\n{"index": 3, "va')
    capsys.readouterr()
    _, rest = evaluate(tmp_path, "model=tiny_llama", "task.scorings=[generate]")
    assert rest["items_from_before"] == 20
    assert rest["items_per_second"] == pytest.approx(12 / rest["eval_seconds"])
    assert f"20 of 32 predictions are from an earlier call: {kept.parents[1]}" in capsys.readouterr().out
    _, nothing = evaluate(tmp_path, "model=tiny_llama", "task.scorings=[generate]")
    assert nothing["items_per_second"] is None
    after = kept.read_text().splitlines()
    assert json.loads(after[0]) == first
    assert sorted(json.loads(line)["index"] for line in after) == list(range(32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=tiny_gpt2", "adapter={adapter}"], "does not fit this model"),
        (["model=tiny_llama", "adapter={empty}"], "adapter_config.json is missing"),
        (["model=tiny_llama", "method=lora"], "method= has no meaning here"),
        (
            ["model=tiny_llama", "launch=fsdp", "launch.num_gpus=2"],
            "launch=fsdp with 2 process(es) has no meaning here",
        ),
        (["model=tiny_llama", "gate=offf"], "'offf'; did you mean 'off'? Legal: on, off"),
    ],
)
def test_what_cannot_be_scored_is_said(adapter, tmp_path, capsys, arguments, message):
    filled = [argument.format(adapter=adapter, empty=tmp_path) for argument in arguments]
    code, scores = evaluate(tmp_path, *filled)
    assert (code, scores) == (2, None)
    assert message in capsys.readouterr().err


def test_a_pickled_adapter_is_refused(adapter, tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    code, _ = evaluate(tmp_path, "model=tiny_llama", f"adapter={tmp_path}")
    assert code == 2
    assert "a pickled adapter_model.bin is not loaded" in capsys.readouterr().err


def damaged(adapter, folder, name, change):
    """Copy an adapter and change one of its files: from bytes to bytes."""
    shutil.copytree(adapter, folder)
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    return folder


def with_settings(**settings):
    return lambda held: json.dumps({**json.loads(held), **settings}).encode()


def with_tensors(change):
    def changed(held):
        tensors = load(held)
        change(tensors)
        return save(tensors)

    return changed


def put_nan(tensors):
    tensors[FACTOR][0, 0] = float("nan")


def deepen(tensors):
    tensors[FACTOR.replace("layers.0", "layers.9")] = tensors[FACTOR].clone()


def round_down(tensors):
    tensors[FACTOR] = tensors[FACTOR].to(torch.int8)


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FACTOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DAMAGES = {
    "no weights": (WEIGHTS, lambda held: b"", f"{WEIGHTS} is damaged"),
    "cut weights": (WEIGHTS, lambda held: held[: len(held) // 2], f"{WEIGHTS} is damaged"),
    "cut header": (WEIGHTS, lambda held: held[:20], f"{WEIGHTS} is damaged"),
    "a huge header": (WEIGHTS, lambda held: b"\xff" * 7 + b"\x7f" + held, f"{WEIGHTS} is damaged"),
    "other bytes": (WEIGHTS, lambda held: b"PK\x03\x04" * 100, f"{WEIGHTS} is damaged"),
    "NaN": (WEIGHTS, with_tensors(put_nan), f"{FACTOR} holds NaN or infinite numbers"),
    "a missing tensor": (WEIGHTS, with_tensors(lambda tensors: tensors.pop(FACTOR)), "does not fit this model"),
    "a deeper model's": (WEIGHTS, with_tensors(deepen), "1 of its tensors have no place there"),
    "integers": (WEIGHTS, with_tensors(round_down), f"{FACTOR} holds integers (torch.int8)"),
    "no config": (CONFIG, lambda held: b"", f"{CONFIG} is damaged"),
    "a cut config": (CONFIG, lambda held: held[:30], f"{CONFIG} is damaged"),
    "a config that is a list": (CONFIG, lambda held: b"[]", f"{CONFIG} is damaged"),
    "a nested config": (CONFIG, lambda held: b"[" * 100_000, f"{CONFIG} is damaged"),
    "no method": (CONFIG, with_settings(peft_type="NONE_OF_THEM"), "does not fit this model"),
    "a bad pattern": (CONFIG, with_settings(target_modules="q_proj("), "does not fit this model"),
    "a rank that is a word": (CONFIG, with_settings(r="four"), "does not fit this model"),
    "a token out of range": (CONFIG, with_settings(trainable_token_indices=[10**7]), "does not fit this model"),
    "a scale that is no number": (CONFIG, with_settings(lora_alpha=float("nan")), "NaN is no number"),
    "invocation tokens": (CONFIG, with_settings(alora_invocation_tokens=[5]), "the base model would be scored"),
    "targets that are none": (CONFIG, with_settings(target_modules=["nothing"]), "does not fit this model"),
}  # fmt: skip


@pytest.fixture(scope="module")
def base():
    (config,) = compose(["model=tiny_llama", "method=none", *SETTINGS])
    return lambda: models.load(config.model, Head("causal_lm"), dtype="float32", seed=0, device="cpu").model


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_adapter_is_refused_in_one_sentence(adapter, base, tmp_path, name):
    file, change, said = DAMAGES[name]
    folder = damaged(adapter, tmp_path / "damaged", file, change)
    with pytest.raises(ConfigError) as refused:
        saved.with_adapter(base(), folder)
    assert said in str(refused.value)
    assert str(folder) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_tensor_of_the_base_in_an_adapter_is_refused(adapter, base, tmp_path):
    model = base()
    weight = "model.layers.0.mlp.up_proj.weight"

    def add(tensors):
        tensors[f"base_model.model.{weight}"] = torch.zeros_like(model.get_parameter(weight))

    folder = damaged(adapter, tmp_path / "more", WEIGHTS, with_tensors(add))
    with pytest.raises(ConfigError, match=f"1 tensor.s. of the base model, e.g. base_model.model.{weight}"):
        saved.with_adapter(model, folder)


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}])
def test_what_an_adapter_trains_besides_factors_is_no_tensor_of_the_base(base, tmp_path, settings):
    made = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    trained = get_peft_model(base(), made)
    trained.save_pretrained(tmp_path)
    again = saved.with_adapter(base(), tmp_path)
    tokens = torch.arange(6)[None]
    torch.testing.assert_close(again(tokens).logits, trained.eval()(tokens).logits)


def test_weights_to_start_from_are_read_with_the_same_care(tmp_path):
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="last.safetensors is damaged"):
        methods.stored_state(path)
    path.write_bytes(save({"a": torch.tensor([1.0, float("inf")])}))
    with pytest.raises(ConfigError, match="a holds NaN or infinite numbers"):
        methods.stored_state(path)
