"""Weights & Biases, on request: losses while they are made, scores at the end. Offline unless a key is set.

Or TensorBoard, by the Trainer's own callback: losses alone.

A failure of the service is a warning: it never ends a run, asks for anything or delays it for long. docs/tracking.md.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dual_lora.config import RunConfig
from dual_lora.records import learning_rates

logger = logging.getLogger(__name__)


class Live(TrainerCallback):
    """Logs what the Trainer logs, at the step that it is of."""

    def __init__(self, identity: dict[str, Any], folder: Path) -> None:
        self._identity, self._folder = identity, folder
        self._run: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._run = _tried(lambda: _started(self._identity, self._folder))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self._run is None or not logs or "train_runtime" in logs:  # the last is a summary, whose loss is a mean
            return
        values = {_NAMES.get(name, name): value for name, value in logs.items() if isinstance(value, int | float)}
        _tried(lambda: self._run.log(values, step=state.global_step))


# The Trainer's names -> those of a record's curves.
_NAMES = {"loss": "train_loss", "eval_loss": "validation_loss", "grad_norm": "gradient_norm"}


def live(config: RunConfig, identity: dict[str, Any], folder: Path) -> list[TrainerCallback]:
    """Return the callback that logs a run's training, if its config asks for one."""
    if config.tracking == "tensorboard":
        from transformers.integrations import TensorBoardCallback

        callback = TensorBoardCallback()
        callback.logging_dir = str(folder / "tensorboard")
        return [callback]
    return [Live(identity, folder)] if config.tracking == "wandb" else []


def track(record: dict[str, Any], folder: Path) -> None:
    """Log a record's scores, and its curves where they were not logged live, and say where they are."""
    _tried(lambda: _finish(record, folder))


def _finish(record: dict[str, Any], folder: Path) -> None:
    run = _started(record["identity"], folder)
    logged = int(getattr(run, "step", 0) or 0)  # steps before were logged while they were made
    points: dict[int, dict[str, float]] = {}
    curves = {name: curve for name, curve in record["curves"].items() if isinstance(curve, list)}  # no diagnostics
    curves["learning_rate"] = learning_rates(record)
    for name, curve in curves.items():
        for step, value in curve:
            points.setdefault(int(step), {})[name] = value
    for step in sorted(step for step in points if step >= logged):
        run.log(points[step], step=step)
    for entry in record["scores"].get("measurements", []):
        for metric, value in entry["metrics"].items():
            place = "/".join(entry[part] for part in ("split", "checkpoint", "scoring", "subset"))
            run.summary[f"{place}/{metric}"] = value
    run.summary["status"] = record["status"]
    address, files = getattr(run, "url", None), getattr(run, "dir", None)
    run.finish(exit_code=0 if record["status"] == "finished" else 1)
    if address:
        logger.info("wandb: %s", address)
    elif files:
        logger.info("wandb: offline; upload with: wandb sync %s", Path(files).parent)


def _started(identity: dict[str, Any], folder: Path) -> Any:
    """Return the run of this id: the one at work in this process, or one that continues it."""
    import wandb

    active = getattr(wandb, "run", None)
    if active is not None and active.id == identity["run_id"]:
        return active
    online = bool(os.environ.get("WANDB_API_KEY")) and os.environ.get("WANDB_MODE", "online") == "online"
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "dual-lora"),
        id=identity["run_id"],
        resume="allow",
        dir=str(folder),
        config=identity,
        mode="online" if online else "offline",
        settings=wandb.Settings(init_timeout=20, silent=True),
    )


def _tried(act: Any) -> Any:
    try:
        return act()
    except Exception as error:  # a tracking service must not end a run
        logger.warning("tracking=wandb did not work: %s", error)
        return None
