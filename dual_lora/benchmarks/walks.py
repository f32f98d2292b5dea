"""Time the Trainer's steps with its walks over all modules against ours without them (`dual_lora.training.walks`).

    python run.py bench walks                     # a CPU: results/benchmarks/walks_cpu.json
    python run.py bench walks --device cuda       # one GPU, SmolLM2-135M's dimensions: walks.json

A step is one of `dual_lora.training.trainer` on random tokens; on the CPU the model has 30 narrow layers. Both ways
train in turn, several times; times are medians of the clock from step to step, with 20 and 80 per cent quantiles; a
training's first steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import Trainer

from dual_lora.benchmarks import timing
from dual_lora.benchmarks.suite_steps import NARROW, UNCOUNTED, Clock, make_config, make_model, train
from dual_lora.training import trainer

METHODS = ("lora", "dual_lora")
SIZES: dict[str, dict[str, Any]] = {
    "cpu": NARROW,
    "cuda": {
        "hidden_size": 576, "intermediate_size": 1536, "num_layers": 30, "num_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "batch": 32, "length": 64, "steps": 40, "rounds": 3,
    },
    "smoke": {**NARROW, "num_layers": 2, "steps": 4, "rounds": 1},
}  # fmt: skip


@contextmanager
def as_the_trainer_does() -> Iterator[None]:
    """Undo what spares the walks."""

    @contextmanager
    def nothing(model: torch.nn.Module) -> Iterator[list[torch.nn.Parameter]]:
        yield []

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(trainer.walks, "fewer", nothing))
        for name in ("floating_point_ops", "_clip_grad_norm"):
            patches.enter_context(mock.patch.object(trainer._Trainer, name, getattr(Trainer, name)))
        yield


def times(method: str, size: dict[str, Any], device: str) -> list[float]:
    """Train once and return the milliseconds of its counted steps."""
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(method, size, device, Path(folder))
        config = replace(config, profile=replace(config.profile, max_steps=size["steps"] + UNCOUNTED))
        clock = Clock(device)
        dtype = "bfloat16" if device == "cuda" else "float32"
        model = make_model(config, device)
        train(model, config, size, batches=4, dtype=dtype, folder=Path(folder), callbacks=[clock])
    return clock.milliseconds()


def run(options: argparse.Namespace) -> None:
    """Time both ways and write the result file."""
    size = SIZES["smoke" if options.smoke else options.device]
    results: dict[str, Any] = {"environment": timing.environment(options.device), "size": size}
    for method in METHODS:
        found: dict[str, list[float]] = {"trainer": [], "ours": []}
        for _ in range(size["rounds"]):
            with as_the_trainer_does():
                found["trainer"] += times(method, size, options.device)
            found["ours"] += times(method, size, options.device)
        row: dict[str, Any] = {way: timing.quantiles(ms) | {"steps": len(ms)} for way, ms in found.items()}
        results[method] = row | {"ratio": row["ours"]["median_ms"] / row["trainer"]["median_ms"]}
        print(method, json.dumps(results[method]), flush=True)
    timing.write(options.output, "walks" if options.device == "cuda" else "walks_cpu", results)
