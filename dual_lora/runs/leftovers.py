"""What a finished run keeps on disk, and what it no longer needs: optimizer state, weights that nothing reports."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def not_needed(folder: Path, record: Mapping[str, Any], *, weights: bool = False) -> list[Path]:
    """Return what the folder of a finished run can do without; with `weights` also all that it trained.

    What stays without `weights`: the last weights, those of each checkpoint that the record reports (other runs start
    from them), the adapter, predictions and logs.
    """
    if record["status"] != "finished":
        return []
    reported = {entry["checkpoint"] for entry in record["scores"].get("measurements", [])}
    selected = [file for file in (folder / "selected").glob("*") if file.stem not in reported]
    every = [folder / name for name in ("last.safetensors", "adapter", "selected")] if weights else []
    found = [folder / "checkpoints", *([] if weights else selected), *every]
    return [path for path in found if path.exists()]


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def free(folder: Path, record: Mapping[str, Any], *, weights: bool = False) -> int:
    """Remove what the folder can do without, as `not_needed` says, and return the bytes that it took."""
    freed = 0
    for path in not_needed(folder, record, weights=weights):
        freed += size(path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return freed
