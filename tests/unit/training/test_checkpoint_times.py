"""When a training writes checkpoints that `launch.save_every_steps` does not ask for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from dual_lora.distributed import processes
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve
from dual_lora.training import checkpoints, trainer
from dual_lora.training.checkpoints import ByTheClock
from tests.small_cells import config


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(checkpoints.time, "monotonic", lambda: self.now)

    def asked(self, callback: ByTheClock, seconds: float, logs: bool = False) -> bool:
        """Return whether a step that ends so much later asks for a checkpoint."""
        self.now += seconds
        control = TrainerControl(should_log=logs)
        callback.on_step_end(SimpleNamespace(), TrainerState(), control)
        return control.should_save


def test_two_minutes_pass_between_two_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    callback = ByTheClock()
    clock.now += 500.0  # of making the Trainer
    callback.on_train_begin(SimpleNamespace(), TrainerState(), TrainerControl())
    assert [clock.asked(callback, seconds) for seconds in (1.0, 118.5, 0.5)] == [False, False, True]
    clock.now += 1.0
    callback.written(clock.now - 1.0)
    assert [clock.asked(callback, seconds) for seconds in (119.0, 1.0)] == [False, True]


def test_checkpoints_that_take_long_take_a_fiftieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    callback = ByTheClock()
    clock.now += 10.0
    callback.written(clock.now - 10.0)
    assert [clock.asked(callback, seconds) for seconds in (120.0, 379.0, 1.0)] == [False, False, True]


def test_several_processes_agree_when_they_log(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    def another_is_due(number: int) -> int:
        heard.append(number)
        return 1

    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "largest", another_is_due)
    clock = Clock(monkeypatch)
    callback = ByTheClock()
    assert not clock.asked(callback, 500.0)
    assert not heard
    callback.written(clock.now)
    assert clock.asked(callback, 1.0, logs=True)  # another one's time has come
    assert heard == [0]


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [1, 2, 3, 4, 5, 6]), (120.0, [])])
def test_a_run_writes_what_the_clock_asks_for(
    seconds: float, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    seal = trainer.seal

    def sealing(checkpoint: Path, layout: dict[str, Any]) -> None:
        found.append(checkpoints.step_of(checkpoint))
        seal(checkpoint, layout)

    monkeypatch.setattr(trainer, "seal", sealing)
    monkeypatch.setattr(checkpoints, "SECONDS", seconds)
    monkeypatch.setattr(checkpoints, "_SHARE", float("inf"))
    record = lifecycle.run(resolve(config(tmp_path, "method=lora", "launch.save_every_steps=null")))
    assert record["status"] == "finished", record.get("message")
    assert found == expected
