"""What a user is told to type works in the shell that they have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dual_lora import shipped


def environment(folder: Path) -> Path:
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.symlink_to(sys.executable)
    return python


def test_the_next_command_names_the_environment_that_is_not_activated(tmp_path: Path, monkeypatch) -> None:
    python = environment(tmp_path)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shipped.here() == ".venv/bin/python run.py"
    monkeypatch.setenv("PATH", "")
    assert shipped.here() == ".venv/bin/python run.py"
    monkeypatch.chdir("/")
    assert shipped.here() == f"{python} run.py".removeprefix("/")
    monkeypatch.setenv("PATH", str(python.parent))
    assert shipped.here() == "python run.py"


def test_an_installed_copy_is_named_as_it_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "IN_CHECKOUT", False)
    monkeypatch.setattr(shipped, "PROGRAM", "dual-lora")
    assert shipped.here() == "dual-lora"


def test_a_command_line_is_quoted_for_a_shell() -> None:
    assert shipped.command_line("-m", "data.dir=/My Data", "method=lora,dora") == (
        "python run.py -m 'data.dir=/My Data' method=lora,dora"
    )
