"""Time the host's part of steps under ZeRO on two CPU processes: DeepSpeed's own steps and the suite's.

    python run.py bench group-steps          # about 15 minutes: results/benchmarks/group_steps_cpu.json

An adapter has hundreds of small tensors. What a step costs the host for each of them is the same on a CPU and with a
GPU, which waits for the host if that takes longer than its own work; layers are so narrow here that a step is little
else. Steps are those of `dual_lora.training.trainer` on random tokens. "deepspeed" has none of what
`dual_lora.distributed.deepspeed_engine` changes. Both ways train in turn, several times; times are medians of the clock
from step to step in the first process, with 20 and 80 per cent quantiles; a training's first steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap

from dual_lora import shipped
from dual_lora.benchmarks import timing
from dual_lora.benchmarks.suite_steps import NARROW, UNCOUNTED, Clock, make_config, make_model, train
from dual_lora.distributed import deepspeed, deepspeed_engine, processes
from dual_lora.training import trainer

METHODS = ("lora", "dora", "dual_lora")
STAGES: tuple[Literal[2, 3], ...] = (2, 3)
PROCESSES = 2
FULL = NARROW | {"steps": 20, "rounds": 3}
SMOKE = NARROW | {"num_layers": 2, "steps": 4, "rounds": 1}


def as_deepspeed_does(stage: int) -> ExitStack:
    """Undo what makes its engine lighter."""
    patches = ExitStack()
    if stage == 3:  # what has taken the place of its linear function stays there for good
        patches.enter_context(mock.patch.object(torch.nn.functional, "linear", zero3_linear_wrap))
    patches.enter_context(mock.patch.object(trainer, "fetch_whole_blocks", return_value=0))
    announce = deepspeed_engine.announce_factors

    def only_what_it_needs(engine: Any, world_size: int, stage: int) -> None:
        if stage == 3:
            announce(engine.module)

    patches.enter_context(mock.patch.object(trainer, "lighten", only_what_it_needs))
    return patches


def times(method: str, stage: Literal[2, 3], size: dict[str, Any], folder: Path) -> list[float]:
    """Train once and return the milliseconds of the counted steps; every process calls it."""
    config = make_config(method, size, "cpu", folder)
    config = replace(
        config,
        model=replace(config.model, dtype="float32"),
        profile=replace(config.profile, max_steps=size["steps"] + UNCOUNTED),
        recipe=replace(config.recipe, global_batch=PROCESSES * size["batch"]),
        launch=replace(config.launch, engine="deepspeed", zero_stage=stage, num_gpus=PROCESSES),
    )
    deepspeed.trust_own_types(config)
    deepspeed.compile_nothing(config)
    clock = Clock("cpu")
    model = make_model(config, "cpu").float()
    train(
        model,
        config,
        size,
        batches=8,
        dtype="float32",
        folder=folder,
        callbacks=[clock],
        world_size=PROCESSES,
    )
    return clock.milliseconds()


def work(method: str, stage: Literal[2, 3], size: dict[str, Any], folder: Path) -> None:
    """One of the processes: both ways in turn."""
    processes.join("cpu")
    found: dict[str, list[float]] = {"deepspeed": [], "ours": []}
    for number in range(size["rounds"]):
        with as_deepspeed_does(stage):
            found["deepspeed"] += times(method, stage, size, folder / f"deepspeed-{number}")
        found["ours"] += times(method, stage, size, folder / f"ours-{number}")
    if processes.is_main():
        (folder / "times.json").write_text(json.dumps(found))
    processes.leave()


def bench(method: str, stage: int, smoke: bool) -> dict[str, Any]:
    """Return the times of both ways and the ratio of their medians. Raises `RuntimeError` if a process fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
        command += ["-m", "dual_lora", "bench", "group-steps", "--worker", method, str(stage), folder]
        command += ["--smoke"] if smoke else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(shipped.import_root())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{method}, ZeRO-{stage} failed:\n{done.stderr[-4000:]}")
        found = json.loads((Path(folder) / "times.json").read_text())
    row: dict[str, Any] = {}
    for way, ms in found.items():
        row[way] = timing.quantiles(ms) | {"steps": len(ms)}
    return row | {"ratio": row["ours"]["median_ms"] / row["deepspeed"]["median_ms"]}


def run(options: argparse.Namespace) -> None:
    """Time every method under both stages and write the result file; or be one of the processes that are timed."""
    size = SMOKE if options.smoke else FULL
    if options.worker:
        method, stage, folder = options.worker
        [chosen] = [one for one in STAGES if str(one) == stage]
        work(method, chosen, size, Path(folder))
        return
    begun = time.perf_counter()
    machine = timing.environment("cpu", timing.LIBRARIES)
    results: dict[str, Any] = {"environment": machine, "size": size, "processes": PROCESSES}
    for method in options.methods or METHODS:
        for stage in STAGES:
            results[f"{method}, zero{stage}"] = row = bench(method, stage, options.smoke)
            print(f"{method}, ZeRO-{stage}: {json.dumps(row)}", flush=True)
    results["seconds"] = round(time.perf_counter() - begun, 1)
    timing.write(options.output, "group_steps_cpu", results)
