"""What a user is told to type works in the shell that they have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dual_lora import shipped
from dual_lora.commands import main
from tests import ROOT

STARTED = [  # the interpreter and the script as typed, what a shell found it to be, what has to be typed again
    ("python", "run.py", "python run.py"),
    (".venv/bin/python", "run.py", ".venv/bin/python run.py"),
    ("python3", str(ROOT / "run.py"), f"python3 {ROOT}/run.py"),
    ("python", str(ROOT / "dual_lora" / "__main__.py"), "python -m dual_lora"),
    ("/my env/bin/python", "/elsewhere/dual-lora", "/elsewhere/dual-lora"),
]


@pytest.mark.parametrize(("python", "script", "again"), STARTED)
def test_a_printed_command_begins_as_the_users_did(
    python: str, script: str, again: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "orig_argv", [python, script])
    monkeypatch.setattr(sys, "argv", [script])
    assert shipped.typed(shipped.command_line("tables", "--records", "a b")) == f"{again} tables --records 'a b'"
    with pytest.raises(SystemExit):
        main(["tables", "--help"])
    shown = capsys.readouterr().out
    assert f"usage: {again} tables" in " ".join(shown.split())
    assert f"    {again} tables --check" in shown
    assert f"which `{again} bench gpu-hours` plans once" in " ".join(shown.split())
    assert main(["--help"]) == main(["bench", "--help"]) == main(["exec", "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"  {again} profile=demo" in shown
    assert f"{again} bench NAME" in shown
    assert f"{again} exec script.py" in shown
    assert again == "python run.py" or " python run.py" not in shown


def test_the_command_of_an_environment_that_is_activated_is_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "dual-lora"
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shipped.program() == str(script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shipped.program() == "dual-lora"


def test_a_package_behind_a_link_is_started_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib64").symlink_to(ROOT)
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "dual_lora"])
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "lib64" / "dual_lora" / "__main__.py")])
    assert shipped.program() == "python3 -m dual_lora"


def test_another_program_names_the_suite_as_it_works_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(ROOT)
    assert shipped.program() == "python run.py"
    monkeypatch.chdir(tmp_path)
    assert shipped.program() == f"python {ROOT}/run.py"
    monkeypatch.setattr(shipped, "IN_CHECKOUT", False)
    monkeypatch.setattr(shipped, "PROGRAM", "dual-lora")
    assert shipped.program() == "dual-lora"


@pytest.mark.parametrize("words", [["run.py"], ["-m", "dual_lora"]], ids=["script", "module"])
def test_the_words_of_a_real_process_are_those_of_its_shell(words: list[str]) -> None:
    done = subprocess.run([sys.executable, *words, "score", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert f"usage: {sys.executable} {' '.join(words)} score" in " ".join(done.stdout.split())


def test_a_command_with_files_of_ones_own_has_the_folder_of_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    line = shipped.command_line("-m", "method=mine", "hydra.searchpath=[file:///my/configs]")
    words = "python run.py -m method=mine 'hydra.searchpath=[file:///my/configs]'"
    monkeypatch.setenv("PYTHONPATH", "my modules")
    assert shipped.typed(line) == f"PYTHONPATH='my modules' {words}"
    assert shipped.typed("python run.py tables") == "python run.py tables"
    assert (
        shipped.typed("python run.py tune a | sh  # b", "results=a b") == "python run.py tune a 'results=a b' | sh  # b"
    )
    monkeypatch.delenv("PYTHONPATH")
    assert shipped.typed(line) == words


def test_a_command_line_is_quoted_for_a_shell() -> None:
    assert shipped.command_line("-m", "data.dir=/My Data", "method=lora,dora") == (
        "python run.py -m 'data.dir=/My Data' method=lora,dora"
    )
