"""GGUF → a plain bf16 safetensors folder, made once and kept in the local cache.

transformers reads GGUF files itself, but slowly, at every start. The folder that is made of them here is an ordinary
checkpoint that loads in about a second.
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
from dual_lora.config.environment import cache_folder
from dual_lora.models.checkpoint_files import remembered_sha256
from dual_lora.records import UNREADABLE, file_sha256

if TYPE_CHECKING:
    from gguf import GGUFReader

_FORMAT = 2  # increase it when the conversion changes, so that older folders are not used
_MANIFEST = "manifest.json"
_CONTROL = 3  # the token type of special tokens (gguf.TokenType.CONTROL)
_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def dequantized_folder(gguf: Path, *, name: str) -> Path:
    """Return the cached safetensors folder of a GGUF file of the LLaMA architecture, making it if needed.

    The folder's name has the GGUF's hash; its manifest has the SHA-256 of every file in it, which is checked at each
    call. A damaged folder is made again. Safe for several processes at once. The first call takes about 20 s and
    says so on stderr; memory stays under 2 GiB for a model of 135M parameters.
    Raises `ModelError` if the GGUF cannot be read or is of another architecture.
    """
    folder = cache_folder() / f"{name}-{remembered_sha256(gguf)[:16]}-v{_FORMAT}"
    with FileLock(folder.parent / f"{folder.name}.lock"):
        if not folder.exists():
            _announce(f"converting {gguf.name} to bfloat16 safetensors, once, about 20 s: {folder}")
        elif problem := damage(folder):
            _announce(f"the cached copy of {gguf.name} is damaged ({problem}); making it again: {folder}")
        else:
            return folder
        _replace_atomically(folder, lambda target: _convert(gguf, target))
    return folder


def damage(folder: Path) -> str | None:
    """Return what is wrong with a cached folder, or None if every file has the content its manifest says."""
    try:
        expected = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["sha256"].items()
    except (OSError, *UNREADABLE):
        return f"{_MANIFEST} is missing or unreadable"
    for file, digest in expected:
        if not (folder / file).is_file():
            return f"{file} is missing"
        if file_sha256(folder / file) != digest:
            return f"{file} has changed"
    return None


def _announce(text: str) -> None:
    print(f"dual_lora: {text}", file=sys.stderr, flush=True)


def _replace_atomically(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder next to its final path and rename it: a reader sees a complete one or none."""
    workplace = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        made = workplace / "new"
        made.mkdir()
        make(made)
        digests = {file.name: file_sha256(file) for file in sorted(made.iterdir())}
        (made / _MANIFEST).write_text(json.dumps({"format": _FORMAT, "sha256": digests}, indent=1), encoding="utf-8")
        if folder.exists():
            os.replace(folder, workplace / "old")
        os.replace(made, folder)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _convert(gguf: Path, target: Path) -> None:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        architecture = _field(reader, "general.architecture")
    except Exception as error:  # the reader raises ValueError, KeyError, IndexError or OSError
        raise ModelError(f"{gguf} cannot be read as GGUF ({error}); it may be truncated: fetch it again") from None
    if architecture != "llama":
        raise ModelError(f"{gguf} has architecture {architecture!r}; only llama is converted from GGUF")
    ids = {role: _field(reader, f"tokenizer.ggml.{name}_token_id") for role, name in _IDS.items()}
    _save_model(gguf, target, ids, tensors=len(reader.tensors))
    _save_tokenizer(gguf, reader, target)


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.fields.get(name)
    return None if field is None else field.contents()


def _save_model(gguf: Path, target: Path, ids: dict[str, Any], *, tensors: int) -> None:
    """Write config and weights as transformers reads them from the GGUF, but not flagged as quantized."""
    import torch
    import transformers
    from safetensors.torch import save_file

    kind = getattr(transformers, "GgufConfig", None)  # releases without it always give plain weights
    net, info = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=kind(dequantize=True) if kind else None,
        output_loading_info=True,
    )
    config, tied = net.config, net.all_tied_weights_keys
    weights = {name: tensor.contiguous() for name, tensor in net.state_dict().items() if name not in tied}
    # transformers would make up what is missing and drop what it has no place for.
    if info["missing_keys"] or len(weights) != tensors:
        raise ModelError(
            f"{gguf} holds {tensors} tensors, a LlamaForCausalLM of its sizes has {len(weights)}; missing: "
            f"{', '.join(sorted(info['missing_keys'])[:8]) or 'none'}. It is another architecture, or fetch it again"
        )
    config.update(ids)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(target)
    transformers.GenerationConfig(**ids).save_pretrained(target)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


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
