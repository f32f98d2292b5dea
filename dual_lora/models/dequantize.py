"""GGUF → a plain bf16 safetensors folder, made once and kept in the local cache.

transformers reads GGUF files itself, but slowly, and flags the model as quantized, so that it cannot be saved again.
The folder made here is an ordinary checkpoint that loads in about a second.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from dual_lora.config import ModelError
from dual_lora.models.checkpoint_files import cache_folder, remembered_sha256
from dual_lora.records import file_sha256

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

_FORMAT = 2  # raise when the conversion changes, so that older folders are not used
_MANIFEST = "manifest.json"
_CONTROL = 3  # the token type of special tokens (gguf.TokenType.CONTROL)
# llama.cpp's names (gguf-py, MODEL_TENSORS of LLAMA) and those of transformers' LlamaForCausalLM
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def dequantized_folder(gguf: Path, *, name: str) -> Path:
    """Return the cached safetensors folder of a GGUF file of the LLaMA architecture, making it if need be.

    The folder's name holds the GGUF's hash; its manifest holds the SHA-256 of every file in it, which is checked at
    each call. A damaged folder is made anew. Safe from several processes at once. The first call takes about 20 s and
    says so on stderr; memory stays under 2 GiB for a model of 135M parameters.
    Raises `ModelError` if the GGUF cannot be read or is of another architecture.
    """
    folder = cache_folder() / f"{name}-{remembered_sha256(gguf)[:16]}-v{_FORMAT}"
    with FileLock(folder.parent / f"{folder.name}.lock"):
        if not folder.exists():
            _announce(f"converting {gguf.name} to bfloat16 safetensors, once, about 20 s: {folder}")
        elif problem := damage(folder):
            _announce(f"the cached copy of {gguf.name} is damaged ({problem}); making it anew: {folder}")
        else:
            return folder
        _replace_atomically(folder, lambda target: _convert(gguf, target))
    return folder


def damage(folder: Path) -> str | None:
    """Return what is wrong with a cached folder, or None if every file has the content its manifest says."""
    try:
        expected: dict[str, str] = json.loads((folder / _MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{_MANIFEST} is missing or unreadable"
    for file, digest in expected.items():
        if not (folder / file).is_file():
            return f"{file} is missing"
        if file_sha256(folder / file) != digest:
            return f"{file} has changed"
    return None


def _announce(text: str) -> None:
    print(f"dual_lora: {text}", file=sys.stderr, flush=True)


def _replace_atomically(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder beside its place and rename it: a reader sees a whole one or none."""
    workplace = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        made = workplace / "new"
        made.mkdir()
        make(made)
        digests = {file.name: file_sha256(file) for file in sorted(made.iterdir())}
        (made / _MANIFEST).write_text(json.dumps({"format": _FORMAT, "sha256": digests}, indent=1))
        if folder.exists():
            os.replace(folder, workplace / "old")
        os.replace(made, folder)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _convert(gguf: Path, target: Path) -> None:
    from gguf import GGUFReader
    from transformers import GenerationConfig

    try:
        reader = GGUFReader(gguf)
        architecture = _field(reader, "general.architecture")
    except Exception as error:  # the reader raises ValueError, KeyError, IndexError or OSError, whatever it stumbles on
        raise ModelError(f"{gguf} cannot be read as GGUF ({error}); it may be truncated: fetch it again") from None
    if architecture != "llama":
        raise ModelError(f"{gguf} holds architecture {architecture!r}; only llama is converted from GGUF")
    config = _config(reader)
    config.save_pretrained(target)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(target)
    _save_weights(reader, config, target / "model.safetensors")
    _save_tokenizer(gguf, reader, target)


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.fields.get(name)
    return None if field is None else field.contents()


def _config(reader: GGUFReader) -> Any:
    from transformers import LlamaConfig

    def read(name: str) -> Any:
        return _field(reader, f"llama.{name}")

    heads = read("attention.head_count")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=read("embedding_length"),
        intermediate_size=read("feed_forward_length"),
        num_hidden_layers=read("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=read("attention.head_count_kv") or heads,
        head_dim=read("rope.dimension_count") or read("embedding_length") // heads,
        vocab_size=read("vocab_size") or len(_field(reader, "tokenizer.ggml.tokens")),
        max_position_embeddings=read("context_length"),
        rms_norm_eps=read("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": read("rope.freq_base") or 10000.0},
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
        dtype="bfloat16",
    )


def _save_weights(reader: GGUFReader, config: Any, path: Path) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = _undo_rotary_permutation(values, heads[part])
        weights[_transformers_name(tensor.name)] = torch.from_numpy(values.copy()).to(torch.bfloat16)
    save_file(weights, path, metadata={"format": "pt"})


def _transformers_name(gguf_name: str) -> str:
    """Return transformers' name of a tensor: blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight."""
    parts = gguf_name.split(".")
    if len(parts) == 2 and parts[0] in _TOP:
        return f"{_TOP[parts[0]]}.{parts[1]}"
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _PER_LAYER:
        return f"model.layers.{parts[1]}.{_PER_LAYER[parts[2]]}.{parts[3]}"
    raise ModelError(f"the GGUF tensor {gguf_name!r} has no counterpart in LlamaForCausalLM")


def _undo_rotary_permutation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return a query or key weight in transformers' order of rows.

    llama.cpp rotates neighbouring pairs of rows, transformers the two halves of a head; the converter to GGUF therefore
    interleaves the halves (`permute` in llama.cpp's convert_hf_to_gguf.py). Shape: (heads · head size, in), kept.
    """
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _save_tokenizer(gguf: Path, reader: GGUFReader, target: Path) -> None:
    from transformers import AutoTokenizer

    if _field(reader, "tokenizer.ggml.pre") == "smollm":
        tokenizer = _smollm_tokenizer(reader)
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokens = _field(reader, "tokenizer.ggml.tokens")
    roles = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    for stored, role in roles.items():  # transformers 5.17 takes the end token from the wrong field
        number = _field(reader, f"tokenizer.ggml.{stored}_token_id")
        if number is not None:
            setattr(tokenizer, role, tokens[number])
    tokenizer.model_max_length = _field(reader, "llama.context_length")
    tokenizer.chat_template = _field(reader, "tokenizer.chat_template")
    tokenizer.save_pretrained(target)


def _smollm_tokenizer(reader: GGUFReader) -> Any:
    """Return the byte-level BPE of SmolLM: single digits first, then the splitting of GPT-2 (as in llama.cpp).

    transformers' own reading of the GGUF leaves the digits together, and its decoder and its clean-up of blanks differ
    between releases, which would change generated text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = _field(reader, "tokenizer.ggml.tokens"), _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
