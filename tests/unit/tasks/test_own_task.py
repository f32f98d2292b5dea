"""A user's own task outside the repository, as docs/own_task.md shows it: composed, planned, trained and recorded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.launch import launch
from tests import ROOT

PAGE = (ROOT / "docs" / "own_task.md").read_text(encoding="utf-8")
CELL = ("task=sums", "model=tiny_llama", "method=lora", "launch.device=cpu")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the page describes, made from the page's own text."""
    found = re.findall(r"(?:^(?: {4}.*)?\n)+", PAGE, re.MULTILINE)
    blocks = [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).lstrip("\n") for block in found]
    (tmp_path / "mytask.py").write_text(next(block for block in blocks if "class Sums" in block))
    (tmp_path / "configs" / "task").mkdir(parents=True)
    (tmp_path / "configs/task/sums.yaml").write_text(next(block for block in blocks if block.startswith("# @package")))
    monkeypatch.syspath_prepend(str(tmp_path))  # the page says PYTHONPATH, which a process reads as it starts
    return tmp_path


def words(mine: Path, *more: str) -> list[str]:
    return [*CELL, f"hydra.searchpath=[file://{mine}/configs]", f"results={mine}/results", *more]


def test_it_trains_and_leaves_a_record(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(compose(words(mine, "plan=true"))) == 0
    assert "12 of batch 16 = 1 device(s)" in capsys.readouterr().out, "three epochs of sixty"
    assert launch(compose(words(mine, "profile.max_steps=2"))) == 0
    (path,) = (mine / "results" / "records").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["status"] == "finished", record.get("message")
    assert record["identity"]["task"]["module"] == "mytask"
    assert record["identity"]["data"]["fingerprint"] == {"source": "made here", "version": 1}
    assert record["scores"]["headline"]["metric"] == "accuracy"
    [test] = [entry for entry in record["scores"]["measurements"] if entry["split"] == "test"]
    assert (test["subset"], test["items"]) == ("sums", 20)


def test_a_module_that_is_not_there_is_named(mine: Path) -> None:
    with pytest.raises(ConfigError, match="task.module=notask: notask cannot be used .No module named 'notask'."):
        launch(compose(words(mine, "task.module=notask")))
    (mine / "empty_task.py").write_text("")
    with pytest.raises(ConfigError, match="it needs a function build.config."):
        launch(compose(words(mine, "task.module=empty_task")))


def test_a_task_without_a_recipe_is_named(mine: Path) -> None:
    path = mine / "configs" / "task" / "sums.yaml"
    path.write_text(path.read_text().partition("recipe:")[0])
    with pytest.raises(ConfigError, match="task=sums has no default recipe: it is in no table"):
        compose(words(mine))


def test_the_contract_holds_for_it(mine: Path) -> None:
    from tests.contracts import test_tasks

    config = compose(words(mine))[0]
    for name, check in vars(test_tasks).items():
        if name.startswith("test_"):
            check(config)
    shutil.rmtree(mine / "configs")
