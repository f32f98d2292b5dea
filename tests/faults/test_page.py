"""docs/reliability.md: every promise names a test, and every test that it names exists."""

from __future__ import annotations

import fnmatch
import re

import pytest

from tests import ROOT

ROWS = [
    line.strip("| ").rsplit(" | ", 1)
    for line in (ROOT / "docs" / "reliability.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
]
FUNCTIONS = {
    name
    for folder in ("faults", "invariants", "slurm", "end_to_end")
    for path in (ROOT / "tests" / folder).glob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize(("promise", "held_by"), ROWS, ids=[held_by for _, held_by in ROWS])
def test_every_promise_is_held_by_a_test(promise, held_by):
    named = re.findall(r"`([^`]+)`", held_by)
    assert named, f"{promise!r} names no test"
    for name in named:
        file, _, function = name.rpartition("::") if "::" in name else ("", "", name)
        if function.endswith(".py"):
            file, function = function, ""
        if file:
            path = ROOT / (file if "/" in file else f"tests/faults/{file}")
            assert path.is_file(), name
        if function:
            assert fnmatch.filter(FUNCTIONS, function), f"{name}: no such test"
