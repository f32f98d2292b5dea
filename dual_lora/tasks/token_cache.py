"""Token ids of many texts, kept between runs: a study's runs encode the same texts hundreds of times.

    ids_of(texts, tokenizer, encode) -> [[...], ...]      # encode(texts) the first time

A file of `$DUAL_LORA_CACHE/tokens` has the ids of one list of texts. Its name is the hash of the texts, the whole
tokenizer and the libraries' versions; its content is checked by a hash of its own, and made again if it is damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dual_lora.config import ModelError
from dual_lora.config.environment import cache_folder
from dual_lora.records import replacing

_FEWEST = 2000  # texts; fewer take less than a second
_FILES = 32  # kept; 50 MB for 100,000 texts of 120 tokens
Ids = list[list[int]]


def ids_of(texts: Sequence[str], tokenizer: Any, encode: Callable[[Sequence[str]], Ids]) -> Ids:
    """Return `encode(texts)`, read from the cache if it is known. A text that comes again is encoded once."""
    different = list(dict.fromkeys(texts))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if len(different) < _FEWEST or backend is None:
        found = encode(different)
    else:
        found = _remembered(different, _key(different, tokenizer, backend.to_str()), encode)
    if len(different) == len(texts):
        return found
    known = dict(zip(different, found, strict=True))
    return [known[text] for text in texts]


def _key(texts: Sequence[str], tokenizer: Any, described: str) -> str:
    versions = [tokenizers.__version__, transformers.__version__, type(tokenizer).__name__]
    ends = [tokenizer.bos_token, tokenizer.eos_token]
    hasher = hashlib.sha256(json.dumps([versions, ends, described, len(texts)]).encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        hasher.update(len(encoded).to_bytes(8, "little") + encoded)
    return hasher.hexdigest()


def _remembered(texts: Sequence[str], key: str, encode: Callable[[Sequence[str]], Ids]) -> Ids:
    try:
        path = cache_folder() / "tokens" / f"{key[:32]}.safetensors"
    except ModelError:  # it cannot be written
        return encode(texts)
    found = _read(path, len(texts))
    if found is None:
        found = encode(texts)
        with contextlib.suppress(OSError):
            _write(path, found)
    return found


def _read(path: Path, texts: int) -> Ids | None:
    """Return the ids in a file; None if there is none that is whole."""
    try:
        with safe_open(path, "np") as file:
            ids, lengths, stated = file.get_tensor("ids"), file.get_tensor("lengths"), file.metadata()["sha256"]
        if len(lengths) != texts or _digest(ids, lengths) != stated:
            return None
        os.utime(path)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None
    flat, ends = ids.tolist(), np.cumsum(lengths).tolist()
    return [flat[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _write(path: Path, found: Ids) -> None:
    lengths = np.array([len(row) for row in found], np.int64)
    ids = np.fromiter((number for row in found for number in row), np.int32, count=int(lengths.sum()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        save_file({"ids": ids, "lengths": lengths}, part, metadata={"sha256": _digest(ids, lengths)})
    files = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files[_FILES:]:
        file.unlink(missing_ok=True)


def _digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
