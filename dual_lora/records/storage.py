"""Files that are complete or absent, hashes of their content, and JSON that is easy to read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WIDTH, _ROW = 120, 400  # of a line of a record, and of one that is a row of many (a measurement), if it can be kept


def digest(values: Any, length: int = 64) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a place next to `path` to write a file to; it takes the name `path` once the block ends without an error.

    A reader sees either the old file or the complete new one. For one writer at a time: the next one overwrites what a
    killed one leaves.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file as `replacing` does, also for several writers at a time and through a crash of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Any) -> None:
    """Write `dumps(values)` as `write_text` does. Raises `ValueError` for a number that is not finite."""
    write_text(path, dumps(values) + "\n")


def dumps(values: Any) -> str:
    """Return JSON with one entry per line; a curve, a measurement or anything that fits takes one line.

    Raises `ValueError` for a number that is not finite.
    """
    plain = json.loads(json.dumps(values, allow_nan=False))  # keys are strings now, tuples lists
    return _laid_out(plain, margin="")


def _laid_out(value: Any, margin: str, width: int = _WIDTH) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if len(margin) + len(line) <= width or not isinstance(value, dict | list) or _is_curve(value):
        return line
    inner = margin + " "
    if isinstance(value, dict):
        entries = [f"{json.dumps(key, ensure_ascii=False)}: {_laid_out(entry, inner)}" for key, entry in value.items()]
        return f"{{\n{inner}" + f",\n{inner}".join(entries) + f"\n{margin}}}"
    return f"[\n{inner}" + f",\n{inner}".join(_laid_out(entry, inner, _ROW) for entry in value) + f"\n{margin}]"


def _is_curve(value: Any) -> bool:
    """Whether a value is numbers alone, or points: [[step, value], ...]."""
    points = [entry if isinstance(entry, list) else [entry] for entry in value] if isinstance(value, list) else []
    return bool(points) and all(isinstance(number, int | float) for point in points for number in point)
