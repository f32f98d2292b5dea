"""What Weights & Biases is given of a record: every curve and every score under a name of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.launch import check
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve
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


class Service:
    """The module wandb, as far as it is used: one run at a time, which knows its steps."""

    Settings = dict

    def __init__(self) -> None:
        self.run: Any = None
        self.begun: list[dict[str, Any]] = []

    def init(self, **settings: Any) -> Any:
        self.begun.append(settings)
        self.run = Run()
        self.run.id, self.run.step, self.run.url = settings["id"], 0, None
        self.run.dir = f"{settings['dir']}/wandb/x/files"
        return self.run


def test_losses_are_logged_while_a_run_trains_and_scores_at_its_end(monkeypatch, tmp_path: Path, caplog) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    live: list[int] = []
    real = Run.log

    def log(self: Run, values: dict[str, float], step: int) -> None:
        if not list(tmp_path.glob("runs/*/trained.json")):  # written once the training has ended
            live.append(step)
        self.step = max(self.step, step)  # type: ignore[attr-defined]
        real(self, {**self.points.get(step, {}), **values}, step)

    monkeypatch.setattr(Run, "log", log)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    caplog.set_level("INFO")
    words = ["model=tiny_roberta", "task=glue/rte", "method=lora", "data.source=sample", "launch.device=cpu"]
    words += ["profile=quick", "profile.max_steps=3", "profile.train_examples=16", "profile.test_items=2"]
    [config] = compose([*words, "tracking=wandb", f"results={tmp_path}"])
    made = lifecycle.run(resolve(config))
    assert made["status"] == "finished", made.get("message")
    assert len(service.begun) == 1, "one run, from the first step to the scores"
    assert service.begun[0]["mode"] == "offline"
    assert service.begun[0]["id"] == made["identity"]["run_id"]
    assert sorted(set(live)) == [1, 2, 3]
    points = service.run.points
    assert [[step, points[step]["train_loss"]] for step in (1, 2, 3)] == [
        [step, pytest.approx(value, rel=1e-3)] for step, value in made["curves"]["train_loss"]
    ]
    assert service.run.exit_code == 0
    assert service.run.summary["status"] == "finished"
    assert "wandb: offline; upload with: wandb sync" in caplog.text


def test_a_service_that_fails_ends_no_run(monkeypatch, tmp_path: Path, caplog) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("no service here")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse, Settings=dict, run=None))
    words = ["model=tiny_roberta", "task=glue/rte", "method=lora", "data.source=sample", "launch.device=cpu"]
    words += ["profile=quick", "profile.max_steps=1", "profile.train_examples=16", "profile.test_items=2"]
    [config] = compose([*words, "tracking=wandb", f"results={tmp_path}"])
    assert lifecycle.run(resolve(config))["status"] == "finished"
    assert "tracking=wandb did not work: no service here" in caplog.text


SMALL = [
    "model=tiny_roberta",
    "task=glue/rte",
    "method=lora",
    "data.source=sample",
    "launch.device=cpu",
    "profile=quick",
]
SMALL += ["profile.max_steps=2", "profile.train_examples=16", "profile.test_items=2", "tracking=tensorboard"]


class Writer:
    """`torch.utils.tensorboard.SummaryWriter`, as far as the Trainer's callback uses it."""

    made: list[Writer] = []

    def __init__(self, log_dir: str) -> None:
        self.folder, self.scalars = log_dir, dict[tuple[str, int], float]()
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_tensorboard_gets_what_the_trainer_logs(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    [config] = compose([*SMALL, f"results={tmp_path}"])
    resolved = resolve(config)
    made = lifecycle.run(resolved)
    assert made["status"] == "finished", made.get("message")
    [writer] = Writer.made
    assert writer.folder == str(resolved.folder / "tensorboard")
    for step, loss in made["curves"]["train_loss"]:
        assert writer.scalars["train/loss", step] == pytest.approx(loss, rel=1e-3)


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dual_lora.launch.find_spec", lambda name: None)
    [config] = compose([*SMALL, f"results={tmp_path}"])
    with pytest.raises(ConfigError, match="tracking=tensorboard needs a package that is missing: pip install tensorb"):
        check(config)
