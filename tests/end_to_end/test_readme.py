"""The README's commands run: each with its own choices of task and method, on a tiny model and the shipped sample."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dual_lora.config.compose import compose
from dual_lora.launch import launch

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BOUNDED = [
    "model=tiny_llama", "data.source=sample", "profile=quick", "profile.max_steps=2", "profile.test_items=1",
    "profile.train_examples=16", "protocol.decoding.beams=1", "protocol.decoding.max_new_tokens=4", "launch.device=cpu",
]  # fmt: skip


def commands() -> list[str]:
    """Return the arguments of every `python run.py` in an indented block, continuation lines joined, comments cut."""
    joined = README.replace("\\\n", " ")
    return [
        match[1].split("#")[0].strip() for match in re.finditer(r"^ {4}python run\.py +(\S.*)$", joined, re.MULTILINE)
    ]


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
