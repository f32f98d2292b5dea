"""Time the host's part of steps under ZeRO: two CPU processes, as DeepSpeed makes steps and as the suite does.

    python scripts/bench_group_steps.py                       # about 15 minutes: group_steps_cpu.json
    python scripts/bench_group_steps.py --smoke --output F    # does it still run?

An adapter has hundreds of small tensors. What a step costs the host for each of them is the same on a CPU and beside a
GPU, which waits for the host if that takes longer than its own work; layers are so narrow here that a step is little
else. Steps are those of `dual_lora.training.trainer` on random tokens. "deepspeed" has none of what
`dual_lora.distributed.deepspeed_engine` changes. Both ways train in turn, several times; times are medians of the clock
from step to step in the first process, with 20 and 80 per cent quantiles; a training's first steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_kernels import RESULTS, environment
from bench_walks import NARROW, Clock
from bench_zero import make_config, make_model
from deepspeed.runtime.zero.linear import zero3_linear_wrap

from dual_lora.config.schedule import plan_batches
from dual_lora.distributed import deepspeed, deepspeed_engine, processes
from dual_lora.evaluation.causal_lm import Collator
from dual_lora.models.tiny_tokenizer import tiny_tokenizer
from dual_lora.tasks.base import Head
from dual_lora.training import trainer

METHODS = ("lora", "dora", "dual_lora")
STAGES: tuple[Literal[2, 3], ...] = (2, 3)
PROCESSES = 2
FULL = NARROW | {"steps": 20, "rounds": 3}
SMOKE = NARROW | {"num_layers": 2, "steps": 4, "rounds": 1}
_UNCOUNTED = 3


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
    config = make_config(method, "plain", size, "cpu", str(folder))
    config = replace(
        config,
        model=replace(config.model, dtype="float32"),
        profile=replace(config.profile, max_steps=size["steps"] + _UNCOUNTED),
        recipe=replace(config.recipe, global_batch=PROCESSES * size["batch"]),
        launch=replace(config.launch, engine="deepspeed", zero_stage=stage, num_gpus=PROCESSES),
    )
    deepspeed.trust_own_types(config)
    deepspeed.compile_nothing(config)
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer("llama", max_length=size["length"])
    tokenizer.pad_token = tokenizer.eos_token
    ids = torch.randint(size["vocab_size"], (8 * size["batch"], size["length"])).tolist()
    clock = Clock(False)
    trainer.train(
        make_model(config, "cpu").float(),
        config,
        trainer.Data(
            tokenizer,
            Collator(tokenizer),
            [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row} for row in ids],
            [],
        ),
        batches=plan_batches(config, PROCESSES),
        dtype="float32",
        folder=folder,
        head=Head("causal_lm"),
        callbacks=[clock],
    )
    pairs = zip(clock.ends[_UNCOUNTED - 1 :], clock.ends[_UNCOUNTED:], strict=False)
    return [1e3 * (end - begin) for begin, end in pairs]


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
    """Return the times of both ways and the ratio of their medians. Raises `SystemExit` if a process fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
        command += [__file__, "--worker", method, str(stage), folder, *(["--smoke"] if smoke else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{method}, ZeRO-{stage} failed:\n{done.stderr[-4000:]}")
        found = json.loads((Path(folder) / "times.json").read_text())
    row: dict[str, Any] = {}
    for way, ms in found.items():
        low, *_, high = statistics.quantiles(ms, n=5)
        row[way] = {"p20_ms": low, "median_ms": statistics.median(ms), "p80_ms": high, "steps": len(ms)}
    return row | {"ratio": row["ours"]["median_ms"] / row["deepspeed"]["median_ms"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the result file")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--smoke", action="store_true", help="two layers, a few steps")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = SMOKE if args.smoke else FULL
    if args.worker:
        method, stage, folder = args.worker
        [chosen] = [one for one in STAGES if str(one) == stage]
        work(method, chosen, size, Path(folder))
        return
    begun = time.perf_counter()
    versions = {name: version(name) for name in ("deepspeed", "transformers", "accelerate", "peft")}
    results: dict[str, Any] = {"environment": environment("cpu") | versions, "size": size, "processes": PROCESSES}
    for method in args.methods:
        for stage in STAGES:
            results[f"{method}, zero{stage}"] = row = bench(method, stage, args.smoke)
            print(f"{method}, ZeRO-{stage}: {json.dumps(row)}", flush=True)
    results["seconds"] = round(time.perf_counter() - begun, 1)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "group_steps_cpu.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
