"""Files of models: which are a checkpoint's weights, and their SHA-256 (remembered)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from dual_lora.config import ModelError
from dual_lora.config.environment import cache_folder
from dual_lora.records import UNREADABLE, file_sha256, write_text


def remembered_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, computed once as long as its size and modification time stay the same.

    A checkpoint's header and size are not enough: two fine-tuned models of one architecture share both. Reading 13 GB
    takes about ten seconds, so the result is kept in `cache_folder()/hashes/`; a file that is rewritten gets a new
    modification time (in nanoseconds) and is read again. Where the cache cannot be written, the file is always read.
    """
    path = path.resolve()
    status = path.stat()
    key = {"path": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns, "inode": status.st_ino}
    try:
        memory = cache_folder() / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:24]}.json"
    except ModelError:
        return file_sha256(path)
    with contextlib.suppress(OSError, *UNREADABLE):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["file"] == key:
            return str(known["sha256"])
    digest = file_sha256(path)
    with contextlib.suppress(OSError):
        write_text(memory, json.dumps({"file": key, "sha256": digest}))
    return digest


def check_plain(folder: Path) -> None:
    """Refuse a folder from which transformers would load other weights than `weight_files` returns.

    It applies an adapter that it finds next to the weights, to the base that the adapter names. Raises `ModelError`.
    """
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} has an adapter_config.json, which transformers would load with the base weights, or in place of "
            "them. Give the folder of the base model alone; an adapter is scored by the command evaluate with "
            "adapter=FOLDER. If the weights are a base model's, move adapter_config.json away"
        )
    named = None
    with contextlib.suppress(OSError, *UNREADABLE):  # who reads the whole config says what is wrong
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    if named is not None:
        raise ModelError(
            f"{folder / 'config.json'} names other weights (transformers_weights={named!r}); only model.safetensors "
            "or the files of model.safetensors.index.json are read: remove the entry, or rename the file"
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder. Raises `ModelError` if there are none, or not all."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        others = sorted(file.name for file in folder.glob("*.bin")) + sorted(
            file.name for file in folder.glob("*.gguf")
        )
        found = f" (it has {', '.join(others)}; pickle files are not read, a GGUF is named itself)" if others else ""
        raise ModelError(f"{folder} has no model.safetensors and no {index.name}{found}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        absent = [name for name in names if not (folder / name).is_file()]
    except UNREADABLE as error:
        raise ModelError(f"{index} is not a safetensors index ({error!r}); fetch the checkpoint again") from None
    if absent:
        raise ModelError(f"{folder} lacks {len(absent)} of {len(names)} weight files: {', '.join(absent[:5])}")
    return [folder / name for name in names]
