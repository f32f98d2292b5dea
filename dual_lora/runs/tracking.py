"""Weights & Biases, on request: offline unless a key is set, so it never blocks and never asks."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from dual_lora.records import learning_rates

logger = logging.getLogger(__name__)


def track(record: dict[str, Any], folder: Path) -> None:
    """Log a record's curves and scores. A failure is a warning: the record on disk is what counts."""
    try:
        import wandb

        online = bool(os.environ.get("WANDB_API_KEY")) and os.environ.get("WANDB_MODE", "online") == "online"
        run = wandb.init(
            project="dual-lora",
            id=record["identity"]["run_id"],
            resume="allow",
            dir=str(folder),
            config=record["identity"],
            mode="online" if online else "offline",
            settings=wandb.Settings(init_timeout=20, silent=True),
        )
        points: dict[int, dict[str, float]] = {}
        curves = {name: curve for name, curve in record["curves"].items() if isinstance(curve, list)}  # no diagnostics
        curves["learning_rate"] = learning_rates(record)
        for name, curve in curves.items():
            for step, value in curve:
                points.setdefault(int(step), {})[name] = value
        for step in sorted(points):
            run.log(points[step], step=step)
        for entry in record["scores"].get("measurements", []):
            for metric, value in entry["metrics"].items():
                place = "/".join(entry[part] for part in ("split", "checkpoint", "scoring", "subset"))
                run.summary[f"{place}/{metric}"] = value
        run.summary["status"] = record["status"]
        run.finish(exit_code=0 if record["status"] == "finished" else 1)
    except Exception as error:  # a tracking service must not end a run
        logger.warning("tracking=wandb did not work: %s", error)
