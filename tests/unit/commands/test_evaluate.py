"""`run.py evaluate` scores a base model and any saved PEFT adapter, and says clearly what it cannot score."""

import json

import pytest
from peft import LoraConfig, get_peft_model

from dual_lora import models
from dual_lora.commands import main
from dual_lora.config.compose import compose
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


def test_an_adapter_and_its_base_are_scored(adapter, tmp_path):
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


def test_the_same_command_goes_on_where_it_was_stopped_and_times_only_what_it_made(tmp_path, capsys):
    _, whole = evaluate(tmp_path, "model=tiny_llama", "task.scorings=[generate]")
    assert whole["items_from_before"] == 0
    assert whole["items_per_second"] == pytest.approx(32 / whole["eval_seconds"])
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
