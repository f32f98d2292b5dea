"""What Weights & Biases is given of a record: every curve and every score under a name of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dual_lora.runs.tracking import track


class Run:
    """What `wandb.init` returns, as far as it is used."""

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.points: dict[int, dict[str, float]] = {}
        self.exit_code: int | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        self.points[step] = values

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_scores_of_two_splits_and_a_record_with_diagnostics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Run()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: made, Settings=dict))
    scores = [
        {"split": split, "checkpoint": "last", "scoring": "classify", "subset": "all", "metrics": {"accuracy": value}}
        for split, value in (("test", 0.7), ("validation", 0.9))
    ]
    curves = {"train_loss": [[1, 2.0], [2, 1.5]], "diagnostics": {"steps": [1, 2], "clip_acted": False, "layers": {}}}
    recipe = {"learning_rate": 0.1, "schedule": "linear", "warmup_steps": 0, "warmup_ratio": 0.0}
    record = {
        "identity": {"run_id": "0", "recipe": recipe, "profile": {"max_steps": 2, "train_examples": None}},
        "status": "finished",
        "curves": curves,
        "cost": {"steps": 2},
        "scores": {"measurements": scores},
    }
    track(record, tmp_path)
    assert made.exit_code == 0, "not finished: tracking gave up"
    assert made.points == {
        1: {"train_loss": 2.0, "learning_rate": 0.1},
        2: {"train_loss": 1.5, "learning_rate": 0.05},
    }
    found = {name: value for name, value in made.summary.items() if name.endswith("accuracy")}
    assert found == {"test/last/classify/all/accuracy": 0.7, "validation/last/classify/all/accuracy": 0.9}
