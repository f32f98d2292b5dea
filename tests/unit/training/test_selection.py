"""Weights with the lowest validation loss are written while training goes on, and are there when they are needed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from dual_lora.records import read_json
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve
from dual_lora.training import callbacks, trainer
from dual_lora.training.callbacks import Selection
from tests.small_cells import config

SOON = 60.0


def evaluated(selection: Selection, step: int, loss: float, value: float) -> None:
    state = TrainerState(global_step=step, is_world_process_zero=True)
    arguments = TrainingArguments(output_dir="unused", use_cpu=True)
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, value)
    selection.on_evaluate(arguments, state, TrainerControl(), metrics={"eval_loss": loss}, model=model)


def kept(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {"weight": model.weight.detach().clone()}


def chosen(folder: Path) -> tuple[int, float]:
    best = read_json(folder / "best_loss.json", dict, "")
    return best["step"], float(load_file(folder / "best_loss.safetensors")["weight"][0, 0])


def test_writing_is_not_waited_for_until_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, allowed = threading.Event(), threading.Event()

    def slow(weights: Any, path: Path) -> None:
        begun.set()
        assert allowed.wait(SOON)
        save_file(weights, path)

    monkeypatch.setattr(callbacks, "save_file", slow)
    selection = Selection(tmp_path, kept)
    evaluated(selection, 1, 3.0, 0.25)
    assert begun.wait(SOON)
    assert not (tmp_path / "best_loss.safetensors").exists()
    allowed.set()
    evaluated(selection, 2, 2.0, 0.5)
    evaluated(selection, 3, 2.5, 0.75)
    assert selection.files() == {"best_loss": tmp_path / "best_loss.safetensors"}
    assert chosen(tmp_path) == (2, 0.5)
    assert selection.last_step == 3


def test_what_kept_weights_from_their_file_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(weights: Any, path: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(callbacks, "save_file", full)
    selection = Selection(tmp_path, kept)
    evaluated(selection, 1, 3.0, 0.25)
    with pytest.raises(OSError, match="no space left"):
        selection.files()


def test_a_checkpoint_is_complete_only_with_what_was_chosen_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that continues from it would otherwise miss the choice, if it was killed in between."""
    seal, found = trainer.seal, []

    def late(weights: Any, path: Path) -> None:
        threading.Event().wait(0.3)
        save_file(weights, path)

    def sealing(checkpoint: Path, layout: dict[str, Any]) -> None:
        [folder] = tmp_path.rglob("selected")
        found.append(read_json(folder / "best_loss.json", dict, "")["step"])
        seal(checkpoint, layout)

    monkeypatch.setattr(callbacks, "save_file", late)
    monkeypatch.setattr(trainer, "seal", sealing)
    words = ("method=lora", "protocol.validation_every_steps=1", "launch.save_every_steps=1")
    record = lifecycle.run(resolve(config(tmp_path, *words)))
    assert record["status"] == "finished", record.get("message")
    losses = [loss for _, loss in record["curves"]["validation_loss"]]
    assert found == [1 + losses.index(min(losses[:step])) for step in range(1, len(losses) + 1)]
    assert len(found) > 1
