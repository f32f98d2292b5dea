"""The README's commands run: each with its own choices of task and method, on a tiny model and the shipped sample."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from dual_lora.commands import COMMANDS
from dual_lora.commands.bench import parser_of
from dual_lora.commands.parser import Parser
from dual_lora.config.compose import compose
from dual_lora.launch import launch
from tests import ROOT

README = (ROOT / "README.md").read_text()
BOUNDED = [
    "model=tiny_llama", "data.source=sample", "profile=quick", "profile.max_steps=2", "profile.test_items=1",
    "profile.train_examples=16", "protocol.decoding.beams=1", "protocol.decoding.max_new_tokens=4", "launch.device=cpu",
]  # fmt: skip


def commands() -> list[str]:
    """Return the arguments of every run in an indented block."""
    return [line for line in command_lines(README) if line.split()[0] not in COMMANDS]


def command_lines(text: str) -> list[str]:
    """Return the arguments of every `python run.py` in an indented block, continuation lines joined, comments cut."""
    joined = text.replace("\\\n", " ")
    found = re.finditer(r"^ {4,}python run\.py +(\S.*)$", joined, re.MULTILINE)
    return [match[1].split(" #")[0].strip() for match in found]


DOCUMENTED = sorted(
    {
        line
        for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        for line in command_lines(path.read_text())
        if line.split()[0] in COMMANDS
    }
)


@pytest.mark.parametrize("line", DOCUMENTED)
def test_a_documented_command_has_these_options(line: str) -> None:
    name, *words = [word for word in shlex.split(line.split(" && ")[0]) if word not in (";", "done")]
    if name == "exec":
        assert words
        return
    if name == "bench":
        assert parser_of(words[0]).parse(words[1:])
        return
    module = importlib.import_module(f"dual_lora.commands.{name.replace('-', '_')}")
    parser = Parser(name, module.__doc__)
    module.options(parser)
    assert parser.parse(words)


def test_all_commands_are_documented() -> None:
    named = {line.split()[0] for line in DOCUMENTED}
    assert named | {"run"} == set(COMMANDS), "each has a place in README.md or docs/"


def test_the_readme_has_commands() -> None:
    assert len(commands()) >= 3


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUAL_LORA_DATA", "unused: the sample stands in for it")
    arguments = [word for word in shlex.split(command) if not word.startswith(("data.dir=", "seed=", "model="))]
    metrics = ["task.metrics=[BLEU]"] if "task=e2e" in arguments else []
    assert launch(compose([*arguments, *BOUNDED, *metrics, f"results={tmp_path}"])) == 0


def test_every_file_the_readme_points_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
