"""A user's own method outside the repository, as docs/own_method.md shows it: composed, trained and recorded."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dual_lora.commands import main
from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.config.words import searchpath
from dual_lora.launch import launch
from dual_lora.report import definition, own_files
from dual_lora.runs import warm_start
from tests import ROOT

PAGE = (ROOT / "docs" / "own_method.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """The folder that the page describes, made from the page's own text."""
    folder = tmp_path_factory.mktemp("mine")
    blocks = [
        re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in re.findall(r"(?:^(?: {4}.*)?\n)+", PAGE, re.M)
    ]
    package = next(block for block in blocks if "class MyConfig" in block)
    method = next(block for block in blocks if "config_class: mypackage.MyConfig" in block)
    (folder / "mypackage.py").write_text(package)
    (folder / "configs" / "method").mkdir(parents=True)
    (folder / "configs" / "method" / "mymethod.yaml").write_text(method)
    return folder


def words(mine: Path, *more: str) -> list[str]:
    return ["method=mymethod", f"hydra.searchpath=[file://{mine}/configs]", *more]


EXPERIMENT = """# @package _global_
hydra:
  sweeper:
    params:
      model: tiny_llama
      task: e2e
      method: mymethod,lora
      protocol: strict
      profile: quick
      data.source: sample
      seed: 0,1
table:
  title: Ours
  block: ours
  columns: [{label: loss, metric: loss}]
"""
CELL = ("model=tiny_llama", "task=e2e", "data.source=sample", "profile=quick")


def experiment(method: str) -> definition.Experiment:
    sweep = {"model": ("tiny_llama",), "task": ("e2e",), "method": (method, "lora"), "seed": ("0", "1")}
    return definition.Experiment("ours", sweep, definition.Block("ours", columns=(definition.Column("loss"),)))


def test_an_experiment_that_ships_needs_no_search_path():
    known = definition.read_all(ROOT / "experiments")
    assert own_files.words(known.values(), None, ROOT / "no runs") == []


def printed(capsys, monkeypatch, *command: str) -> list[list[str]]:
    """Return the words of each command that a command prints, after the program; each has the modules' folder too."""
    monkeypatch.setenv("PYTHONPATH", "my modules")
    main([*command])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if " -m " in line]
    assert all(line.startswith("PYTHONPATH='my modules' python run.py -m ") for line in lines)
    return [shlex.split(line)[3:] for line in lines]


def test_the_commands_that_status_prints_find_it(mine, tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "experiments" / "ours.yaml").write_text(EXPERIMENT)
    (mine / "configs" / "experiment").mkdir(exist_ok=True)
    (mine / "configs" / "experiment" / "ours.yaml").write_text(EXPERIMENT)
    asked = ["status", "ours", f"--home={tmp_path}"]
    assert printed(capsys, monkeypatch, *asked) == printed(capsys, monkeypatch, *asked, "--missing") == []
    main([*asked, "--missing"])
    shown = capsys.readouterr()
    assert (shown.out, shown.err.partition("configs/.")[0]) == ("", "method=mymethod: not in ")
    assert "nothing is missing" not in shown.err
    main(asked)
    assert "4 runs: 4 missing\n\nNo commands for the rest: method=mymethod: not in" in capsys.readouterr().out
    lines = printed(capsys, monkeypatch, *asked, f"hydra.searchpath=[file://{mine}/configs]")
    assert [cell.method.name for line in lines for cell in compose(line)] == ["mymethod"] * 2 + ["lora"] * 2


def test_the_commands_that_tune_prints_find_it(mine, monkeypatch, capsys):
    asked = ["tune", *words(mine, "model=tiny_llama", "task=e2e", "data.source=sample"), f"results={mine}/none"]
    [line] = printed(capsys, monkeypatch, *asked)
    cells = compose(line)
    assert len({(cell.recipe.learning_rate, cell.seed) for cell in cells}) == 10
    assert {(cell.method.name, cell.results) for cell in cells} == {("mymethod", f"{mine}/none")}


def test_the_command_of_a_warm_start_finds_it(mine):
    own = ["model=tiny_roberta", "task=glue/rte", "data.source=sample", "init_from=auto", "method.r=3"]
    [cell] = compose(words(mine, *own))
    [start] = compose(shlex.split(warm_start.command(cell).partition("run.py ")[2]))
    assert (start.task.name, start.method) == ("glue/mnli", cell.method)


def test_a_file_of_ones_own_may_refer_to_the_seed(mine):
    (mine / "configs" / "method" / "seeded.yaml").write_text("defaults: [mymethod, _self_]\nname: seeded\nr: ${seed}\n")
    cells = compose(["-m", *words(mine, *CELL, "seed=1,3")[1:], "method=seeded"])
    assert [(cell.seed, cell.method.settings["r"]) for cell in cells] == [(1, 1), (3, 3)]


@pytest.mark.parametrize("given", ["[file://mine/configs]", "[mine/configs]", "[pkg://some.package,mine/configs]"])
def test_what_a_run_was_given_is_kept_as_any_folder_finds_it(given):
    kept = searchpath([f"hydra.searchpath={given}"])
    assert kept == f"[{'pkg://some.package,' if 'pkg' in given else ''}file://{Path.cwd()}/mine/configs]"


def test_it_composes(mine):
    command = [sys.executable, "run.py", *words(mine, *CELL, "--cfg", "job")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "config_class: mypackage.MyConfig" in done.stdout


def test_a_misspelt_setting_is_refused(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine))
    cells = compose(words(mine, *CELL, "+method.rr=3", f"results={mine}/results"))
    with pytest.raises(ConfigError, match=r"mypackage\.MyConfig\) has no setting 'rr'; did you mean 'r'"):
        launch(cells)


def test_it_trains_and_leaves_a_record(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine))  # the page says PYTHONPATH, which a process reads as it starts
    small = (
        "profile.max_steps=2",
        "profile.train_examples=16",
        "profile.validation_examples=4",
        "profile.test_items=2",
    )
    scored = ("task.metrics=[BLEU]", "task.headline=BLEU", f"results={mine}/results")
    assert launch(compose(words(mine, *CELL, *small, *scored))) == 0
    (path,) = (mine / "results" / "records").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    [needs] = own_files.words([experiment("mymethod")], None, mine / "results" / "runs")
    assert needs in words(mine), "what the run was given"
    assert record["status"] == "finished"
    assert record["identity"]["method"]["name"] == "mymethod"
    layers = 2 * ((64 + 64) + 2 * (64 + 32) + 2 * (64 + 128))  # q, k and v, up and down of two layers
    assert record["cost"]["trainable_parameters"] == 2 * layers
