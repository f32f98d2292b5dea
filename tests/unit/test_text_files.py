"""A text file is read and written in UTF-8, whatever the login's locale says."""

from __future__ import annotations

import ast

import pytest

from tests import ROOT

MODULES = [*sorted((ROOT / "dual_lora").rglob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
TEXT = ("read_text", "write_text", "open")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_file_states_its_encoding(module) -> None:
    calls = [node for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [f"line {call.lineno}" for call in calls if opens_text(call)] == []


def opens_text(call: ast.Call) -> bool:
    name, owner = getattr(call.func, "attr", getattr(call.func, "id", "")), getattr(call.func, "value", None)
    if name not in TEXT or any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if isinstance(owner, ast.Name) and owner.id in ("gzip", "tarfile", "zipfile", "os", "files", "records", "storage"):
        return False  # bytes, or functions of ours that state it
    if name == "open":
        words = [*call.args, *(keyword.value for keyword in call.keywords)]
        return not any("b" in str(word.value) for word in words if isinstance(word, ast.Constant))
    return owner is not None
