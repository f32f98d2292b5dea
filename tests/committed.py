"""The records that are committed, read once for all tests of a process."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from dual_lora.records import files
from dual_lora.records.schema import Record
from dual_lora.report import records
from tests import ROOT

FOLDER = ROOT / "results" / "records"


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """Return the place and the text of each record: a file, or a line of a file of many."""
    found: list[tuple[str, str]] = []
    for path in files(FOLDER):
        text = path.read_text(encoding="utf-8")
        lines = text.rstrip("\n").split("\n") if path.suffix == ".jsonl" else [text]
        found += [(f"{path.name}, line {number}", line) for number, line in enumerate(lines, 1)]
    return tuple(found)


@cache
def values() -> tuple[dict[str, Any], ...]:
    """Return the records as their files hold them; not to be changed."""
    return tuple(json.loads(text) for _, text in texts())


@cache
def typed() -> tuple[Record, ...]:
    """Return the records as a table reads them."""
    return tuple(records.read_each(records.committed(FOLDER)).records())
