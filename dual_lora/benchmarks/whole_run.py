"""Time the steps of a run as `python run.py` makes it, and how long its GPU computes meanwhile.

    python run.py bench whole-run model.path=FOLDER data.source=local data.dir=data     # all methods
    python run.py bench whole-run model.path=FOLDER data.source=local data.dir=data --methods lora --steps 51 250

Writes results/benchmarks/whole_run.json. A run is one of LLaMA-2-7B on commonsense with the schedule of a whole one:
recordings of graphs, new shapes, validations, logs and checkpoints are in. Settings replace these. After the last of
`--steps` it is stopped as by Ctrl-C, and nothing of it stays. Each method has two runs, each in a process of its own:
one whose steps are timed by events of the GPU, and one under torch's profiler, whose kernels say how long the GPU was
busy. The profiler slows the host, not the kernels. Weights of `run.py random-checkpoint` have a model's speed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from transformers import TrainerCallback

from dual_lora.benchmarks import timing
from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.launch import launch
from dual_lora.records import origin_of_this_process, read_steps
from dual_lora.runs import work
from dual_lora.training import trainer
from dual_lora.training.result import TrainingResult

METHODS = ("lora", "dora", "dual_lora")
RUN = ["model=llama2", "task=commonsense"]
SMOKE = ["model=tiny_llama", "task=commonsense", "data.source=sample", "profile=quick", "profile.train_examples=64"]
SMOKE += ["recipe.global_batch=4", "profile.max_steps=10", "launch.device=cpu"]
STEPS, SMOKE_STEPS = (51, 250), (3, 6)


class Watch(TrainerCallback):
    """Times the steps `first` to `last`, or profiles them, and then stops the run."""

    def __init__(self, first: int, last: int, cuda: bool, profiled: bool) -> None:
        self._first, self._last, self._cuda = first, last, cuda
        self._ends: list[Any] = []
        self._profile: Any = None
        if profiled:
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if self._first - 1 <= step <= self._last:
            self._ends.append(timing.mark(self._cuda))
        if self._profile is not None and step in (self._first - 1, self._last):
            torch.cuda.synchronize()
            self._profile.start() if step < self._first else self._profile.stop()
        if step == self._last + 1:  # what comes after the last step, such as a validation, is its next one's
            os.kill(os.getpid(), signal.SIGINT)

    def times(self) -> dict[str, float]:
        """Return milliseconds: the mean of the steps, validations and all, and their median."""
        found = timing.between(self._ends, self._cuda)
        return {"ms_a_step": sum(found) / len(found), "median_ms": statistics.median(found)}

    def busy_ms(self) -> float:
        """Return for how many milliseconds a step at least one kernel ran."""
        events = self._profile.profiler.kineto_results.events()  # a million; as objects of Python they take minutes
        found = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.device_type() == DeviceType.CUDA]
        return timing.covered(found) / 1e6 / (self._last + 1 - self._first)


def measure(words: list[str], first: int, last: int, profiled: bool) -> dict[str, Any]:
    """Make one run in this process and return what was timed.

    Raises `RuntimeError` if it ends before the last step.
    """
    cuda = "launch.device=cpu" not in words
    watch = Watch(first, last, cuda, profiled)

    def train(*given: Any, callbacks: Any = (), **options: Any) -> TrainingResult:
        return trainer.train(*given, callbacks=[*callbacks, watch], **options)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(work, "train", train):
        launch(compose([*words, f"results={folder}"]))
        lines = [line for path in Path(folder).glob("runs/*/curves.jsonl") for line in read_steps(path)]
        if not lines or lines[-1]["step"] < last:
            raise RuntimeError(f"{' '.join(words)}: the run ended before step {last}; see its output above")
    if profiled:
        return {"busy_ms": watch.busy_ms()}
    inside = [line for line in lines if "tokens" in line and first <= line["first"] and line["step"] <= last]
    counted = sum(len(line["losses"]) for line in inside)  # steps; logs may not begin and end with the timed ones
    found = watch.times() | {"steps": [first, last]}
    for name, key in (("useful_tokens_s", "useful"), ("padded_tokens_s", "tokens")):
        found[name] = 1e3 * sum(line[key] for line in inside) / counted / found["ms_a_step"]
    if cuda:
        found["reserved_GiB"] = torch.cuda.max_memory_reserved() / 2**30
    return found


def run(options: argparse.Namespace) -> None:
    """Time every method, and write each as it is done. Raises `ConfigError` for steps that cannot be timed."""
    first, last = options.steps or (SMOKE_STEPS if options.smoke else STEPS)
    if not 2 <= first < last:
        raise ConfigError(
            f"--steps {first} {last}: the first timed step is 2 or later, and the last one comes after it"
        )
    device = "cpu" if options.smoke else "cuda"
    if not options.smoke and not torch.cuda.is_available():
        raise ConfigError("bench whole-run needs a GPU; --smoke runs a tiny model on a CPU")
    results = timing.read(options.output, "whole_run")
    results["environment"] = timing.environment(device, ("transformers", "peft", "accelerate"))
    settings = [*(SMOKE if options.smoke else RUN), *options.settings]
    origin = origin_of_this_process()  # a row of a method that is not measured again keeps its own
    made = {"commit": origin["commit"], "dirty": origin["dirty"], "command": timing.command()}
    context = multiprocessing.get_context(timing.start_method())
    for method in options.methods or METHODS:
        row: dict[str, Any] = {**made}
        for profiled in (False, True)[: 1 if options.smoke else 2]:
            with ProcessPoolExecutor(1, mp_context=context) as process:
                words = [*settings, f"method={method}"]
                row |= process.submit(measure, words, first, last, profiled).result()
        if "busy_ms" in row:
            row["step_over_busy"] = row["ms_a_step"] / row["busy_ms"]
        results.setdefault("methods", {})[method] = row
        print(method, json.dumps(row), flush=True)
        timing.write(options.output, "whole_run", results)
