"""A user's own method outside the repository, as docs/own_method.md shows it: composed, trained and recorded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.launch import launch
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


CELL = ("model=tiny_llama", "task=e2e", "data.source=sample", "profile=quick")


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
    assert record["status"] == "finished"
    assert record["identity"]["method"]["name"] == "mymethod"
    layers = 2 * ((64 + 64) + 2 * (64 + 32) + 2 * (64 + 128))  # q, k and v, up and down of two layers
    assert record["cost"]["trainable_parameters"] == 2 * layers
