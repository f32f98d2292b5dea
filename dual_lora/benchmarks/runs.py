"""Count whole runs per minute of one GPU: N runs of a sweep, so many at a time, with CUDA graphs and without.

    python run.py bench runs data.source=local data.dir=data              # results/benchmarks/runs.json
    python run.py bench runs model.path=FOLDER profile.train_examples=4000 --parallel 1 8 --graphs auto off

A run is one of SmolLM2-135M on E2E with Dual LoRA, 16,000 training pairs, under the protocol and the profile of the
studies; settings replace these. All are runs as `python run.py -m` makes them, with seeds of their own: from the first
start to the last record, training, evaluation and scoring are in. Left out is what a sweep does once: imports, and a
short run before the others that compiles kernels. As many runs are made as are made at a time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from dual_lora import records
from dual_lora.benchmarks import timing
from dual_lora.config.compose import compose
from dual_lora.launch import forks, launch

PARALLEL = [1, 4, 8, 16]
GRAPHS = ["auto", "off"]
STUDY = ["model=smollm2", "task=e2e", "method=dual_lora", "protocol=strict", "profile=study"]
STUDY += ["profile.train_examples=16000", "profile.validation_examples=1024", "recipe.epochs=1"]
SMOKE = ["model=tiny_llama", "task=e2e", "method=lora", "protocol=strict", "profile=demo", "profile.max_steps=2"]
SMOKE += ["profile.base_row=false", "profile.test_items=2", "data.source=sample", "task.metrics=[BLEU]"]
SMOKE += ["launch.device=cpu"]


def measure(settings: list[str], graphs: str, parallel: int, count: int) -> dict[str, Any]:
    """Return the seconds of `count` runs, `parallel` at a time, and what the runs say of theirs.

    Raises `RuntimeError` if one does not finish: its rate would say nothing.
    """
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        words = [*settings, f"launch.graphs={graphs}", f"launch.parallel={parallel}", f"results={folder}"]
        configs = compose(["-m", *words, f"seed={','.join(map(str, range(count)))}"])
        if parallel > 1:
            forks.serve(configs)
            ready = multiprocessing.get_context("forkserver").Process(target=os.getpid)
            ready.start()
            ready.join()
        begun = time.perf_counter()
        code = launch(configs)
        seconds = time.perf_counter() - begun
        found = [records.read(path) or {} for path in sorted(Path(folder).glob("records/*.json"))]
        if code or len(found) != count:
            said = [f"{record.get('status')}: {record.get('message')}" for record in found]
            raise RuntimeError(f"{count} runs, {parallel} at a time, graphs={graphs}: {said or 'no record'}")
    row: dict[str, Any] = {"graphs": graphs, "parallel": parallel, "runs": count, "seconds": round(seconds, 3)}
    row["runs_per_minute"] = round(60 * count / seconds, 2)
    for name in ("train_seconds", "eval_seconds", "steps"):
        row[name] = round(statistics.median(record["cost"][name] for record in found), 2)
    row["replays"] = statistics.median(record["execution"]["graphs"].get("replays", 0) for record in found)
    return row


def run(options: argparse.Namespace) -> None:
    """Measure every way, and write each as it is done."""
    settings = [*(SMOKE if options.smoke else STUDY), *options.settings]
    device = "cpu" if options.smoke else "cuda"
    rows: list[dict[str, Any]] = []
    results = {
        "environment": timing.environment(device, ("transformers", "peft", "accelerate")),
        "command": timing.command(),
        "settings": settings,
        "rows": rows,
    }
    ways = [(graphs, parallel) for graphs in options.graphs or GRAPHS for parallel in options.parallel or PARALLEL]
    print("before all:", json.dumps(measure([*settings, "profile.max_steps=3"], "auto", 1, 1)), flush=True)
    for graphs, parallel in ways:
        row = measure(settings, graphs, parallel, parallel)
        rows.append(row)
        print(json.dumps(row), flush=True)
        timing.write(options.output, "runs", results)
