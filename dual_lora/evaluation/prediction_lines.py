"""The lines of a file of kept predictions, one JSON object each: `{"index": 3, "value": REPLY}`.

A value is a reply, or for a ranking the log-likelihoods of the item's candidates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dual_lora.records import UNREADABLE
from dual_lora.tasks.base import Example, Reading, Task

RANKINGS = ("likelihood", "cloze")  # scorings whose values are log-likelihoods; all others generate


def readings(task: Task, values: Sequence[Any], items: Sequence[Example], scoring: str) -> list[Reading]:
    """Return what a task reads in the values of its items."""
    if scoring in RANKINGS:
        return [task.choose(item, scoring, row) for item, row in zip(items, values, strict=True)]
    return [task.read(reply, item) for item, reply in zip(items, values, strict=True)]


def line(index: int, value: Any) -> str:
    """Return the line of an item."""
    return json.dumps({"index": index, "value": value}, ensure_ascii=False)


def sha256(lines: Iterable[str]) -> str:
    """Return the hash of the lines of all items in their order, as a record keeps it."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def in_order(path: Path) -> list[str]:
    """Return the lines of a predictions file in the items' order. Raises `OSError`, or one of `UNREADABLE`."""
    return sorted(read_lines(path), key=lambda text: int(json.loads(text)["index"]))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a predictions file, including an unfinished last one. Raises `OSError`, `ValueError`.

    `str.splitlines` would also split where a reply holds U+0085, U+2028 or U+2029, which JSON leaves as they are.
    """
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.stat().st_size else []


def read_values(path: Path) -> dict[int, Any]:
    """Return the value of each item by its index; {} if there is no file.

    Lines that cannot be read are left out: a process died while it wrote one, or the file is damaged.
    """
    values = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            entry = json.loads(line)  # a cut one may end within a character
            index, value = entry["index"], entry["value"]
        except UNREADABLE:
            continue
        if type(index) is int and index >= 0 and (isinstance(value, str) or _are_numbers(value)):
            values[index] = value
    return values


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(number, int | float) for number in value)
