"""The README's commands run: each with its own choices of task and method, on a tiny model and the shipped sample."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from transformers import TrainingArguments

from dual_lora import DeltaWarmupCallback, DualLoraLinear
from dual_lora.commands import COMMANDS
from dual_lora.commands.bench import parser_of
from dual_lora.commands.parser import Parser
from dual_lora.config.compose import compose
from dual_lora.launch import launch
from tests import ROOT, committed
from tests.unit.tuner.tiny_adapted_model import TOKENS, make_base

README = (ROOT / "README.md").read_text()
BOUNDED = [
    "profile=quick", "profile.max_steps=2", "profile.test_items=1", "profile.train_examples=16",
    "protocol.decoding.beams=1", "protocol.decoding.max_new_tokens=4", "launch.device=cpu",
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
    name, *words = [word for word in shlex.split(re.split(r" && | \| ", line)[0]) if word not in (";", "done")]
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
    """As written, but small: on a tiny model, and on the sample where it would fetch."""
    monkeypatch.setenv("DUAL_LORA_DATA", str(ROOT / "dual_lora" / "tasks" / "sample"))
    written = [os.path.expandvars(word) for word in shlex.split(command)]
    for config in compose(written):  # nothing is changed yet: it names what there is
        assert config.task.name
    sampled = (
        [] if any(word.startswith(("data.source=", "experiment=")) for word in written) else ["data.source=sample"]
    )
    metrics = ["task.metrics=[BLEU]"] if "e2e" in command or "nlg" in command else []
    words = [*written, "model=tiny_llama", "seed=0", *sampled, *BOUNDED, *metrics, f"results={tmp_path}"]
    assert launch(compose(words)) == 0


@pytest.mark.parametrize("page", ["README.md", "docs/methods/dual_lora.md", "docs/upstream/dual_lora.md"])
def test_the_example_for_own_code_trains(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is printed, where `base`, `args` and `data` are a user's."""
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    texts = [{"input_ids": row, "labels": row} for row in TOKENS]
    args = TrainingArguments("out", max_steps=2, use_cpu=True, report_to=[], save_strategy="no", learning_rate=1e-2)
    names = {"base": make_base("llama"), "args": args, "data": texts}
    exec(example, names)
    if "trainer.train()" not in example:
        names["trainer"].train()
    assert names["trainer"].state.global_step == 2
    [callback] = [one for one in names["trainer"].callback_handler.callbacks if isinstance(one, DeltaWarmupCallback)]
    assert callback.resolved_warmup_steps == 1
    layers = [module for module in names["base"].modules() if isinstance(module, DualLoraLinear)]
    assert ("merge_and_unload" in example) == (not layers)


def test_the_readme_says_how_python_is_the_suites() -> None:
    assert ". .venv/bin/activate" in README
    assert README.index(". .venv/bin/activate") < README.index("python run.py")


def test_the_measured_environment_is_that_of_the_records() -> None:
    lines = (ROOT / "constraints-measured.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    held: Counter[tuple[tuple[str, str], ...]] = Counter()
    for made in committed.values():
        versions = made["origin"]["versions"]
        held[tuple(sorted((name, word) for name, word in versions.items() if name != "python"))] += 1
    [(most, _)] = held.most_common(1)
    assert dict(most) == pinned


def test_every_file_the_readme_points_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
