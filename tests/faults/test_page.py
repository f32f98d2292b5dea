"""docs/reliability.md: every promise names a test, and every test that it names exists."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

from tests import ROOT

ROWS = [
    line.strip("| ").rsplit(" | ", 1)
    for line in (ROOT / "docs" / "reliability.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
]


def functions(*paths: Path) -> set[str]:
    return {name for path in paths for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}


HERE = functions(*(ROOT / "tests" / "faults").glob("test_*.py"))


@pytest.mark.parametrize(("promise", "held_by"), ROWS, ids=[held_by for _, held_by in ROWS])
def test_every_promise_is_held_by_a_test(promise, held_by):
    named = re.findall(r"`([^`]+)`", held_by)
    assert named, f"{promise!r} names no test"
    for name in named:
        file, _, function = name.rpartition("::") if "::" in name else ("", "", name)
        if function.endswith(".py"):
            file, function = function, ""
        path = ROOT / (file if "/" in file else f"tests/faults/{file}")
        if file:
            assert path.is_file(), name
        if function:
            assert fnmatch.filter(functions(path) if file else HERE, function), f"{name}: no such test"
