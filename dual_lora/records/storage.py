"""Files that are complete or absent, hashes of their content, and JSON that is easy to read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from dual_lora.config import ConfigError

logger = logging.getLogger(__name__)
Value = TypeVar("Value")
# What parsing a damaged JSON file raises, or using what is in it.
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_PACKED = re.compile(r"[bfu]\d \d+x\d+ ")
_CANONICAL = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False
)
_WIDTH, _ROW = 120, 400  # of a line of a record, and of one that is a row of many (a measurement), if it can be kept


def digest(values: Any, length: int = 64) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(_CANONICAL.encode(values).encode()).hexdigest()[:length]


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
        with contextlib.suppress(PermissionError):  # some mounts have no modes
            os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Any) -> None:
    """Write `dumps(values)` as `write_text` does. Raises `ValueError` for a number that is not finite."""
    write_text(path, dumps(values) + "\n")


def read_json(path: Path, parse: Callable[[Any], Value], fix: str = "") -> Value | None:
    """Return `parse(values)` of a run's JSON file, or None if there is none.

    A file that cannot be read or parsed is set aside, to be made anew as one that is missing. If that would lose
    what cannot be measured again, `fix` says what to do: then `ConfigError` is raised.
    """
    try:
        return parse(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        if fix:
            raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}); {fix}") from None
        logger.warning("%s is damaged (%s: %s) and set aside", path, type(error).__name__, error)
        with suppress(FileNotFoundError):  # another process of the group was first
            set_aside(path)
        return None


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's `curves.jsonl` before the first that cannot be read: it was being written."""
    entries = []
    with suppress(OSError, *UNREADABLE):
        for text in path.read_text(encoding="utf-8").split("\n"):
            entry = json.loads(text)
            entries.append({**entry, "step": int(entry["step"])})
    return entries


def set_aside(path: Path) -> None:
    """Rename a damaged file or folder to `damaged-NAME.NUMBER`, the first that is free."""
    number = 0
    while (aside := path.with_name(f"damaged-{path.name}.{number}")).exists():
        number += 1
    path.rename(aside)


def dumps(values: Any) -> str:
    """Return JSON with one entry per line; a curve, a measurement, packed items or anything that fits takes one line.

    Raises `ValueError` for a number that is not finite.
    """
    plain = json.loads(json.dumps(values, allow_nan=False))  # keys are strings now, tuples lists
    return _laid_out(plain, margin="")


def _laid_out(value: Any, margin: str, width: int = _WIDTH) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if len(margin) + len(line) <= width or not isinstance(value, dict | list) or _is_rows(value):
        return line
    inner = margin + " "
    if isinstance(value, dict):
        entries = [f"{json.dumps(key, ensure_ascii=False)}: {_laid_out(entry, inner)}" for key, entry in value.items()]
        return f"{{\n{inner}" + f",\n{inner}".join(entries) + f"\n{margin}}}"
    return f"[\n{inner}" + f",\n{inner}".join(_laid_out(entry, inner, _ROW) for entry in value) + f"\n{margin}]"


def _is_rows(value: Any) -> bool:
    """Whether a value is numbers alone, or points ([[step, value], ...]), or what each item says (`per_item`)."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(text, str) and _PACKED.match(text) for text in value.values())
    points = [entry if isinstance(entry, list) else [entry] for entry in value] if isinstance(value, list) else []
    return bool(points) and all(isinstance(number, int | float) for point in points for number in point)
