"""Time the suite's training steps as CUDA graphs against the same steps without, with memory and the GPU's own time.

    python run.py bench graphs                 # one GPU: results/benchmarks/graphs.json
    python run.py bench graphs --methods lora  # some of the methods, kept next to the others

A step is one of `dual_lora.training.trainer` on random tokens, bf16 weights with LLaMA-7B's and SmolLM2-135M's
dimensions: 16 x 112 tokens are the paper's batch on commonsense, and dropout 0.05 on the adapter's input is what its
recipes have. Both ways train one after the other, in this process.
Times are medians from step to step, least and most, of GPU events; no step waits for another. Memory is the most that
the allocator handed out, and kept. `busy_ms` is how long at least one kernel ran in a graphed step, and by kind the sum
over its kernels, those of a second stream too.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from transformers import TrainerCallback

from dual_lora.benchmarks import timing
from dual_lora.benchmarks.suite_steps import make_config, make_model, train

METHODS = ("lora", "dora", "dual_lora")
# eager, graph: steps without graphs, with them
LLAMA_7B: dict[str, Any] = {"model": "llama", "batch": 16, "length": 112, "answer": 10, "eager": 14, "graph": 24}
LONGER = {"batch": 32, "length": 128, "eager": 12, "graph": 16}
SIZES: dict[str, dict[str, Any]] = {
    "LLaMA-7B, 16 x 112, dropout 0.05": {**LLAMA_7B, "dropout": 0.05},
    "LLaMA-7B, 16 x 112": LLAMA_7B,
    "LLaMA-7B, 32 x 128, dropout 0.05": {**LLAMA_7B, **LONGER, "dropout": 0.05},
    "LLaMA-7B, 32 x 128": {**LLAMA_7B, **LONGER},
    "SmolLM2-135M, 16 x 128": {**LLAMA_7B, "model": "smollm2", "length": 128, "eager": 20, "graph": 40},
}
TINY = {"model": "tiny_llama", "batch": 2, "length": 16, "answer": 4, "eager": 12, "graph": 12, "dropout": 0.05}
DROPOUT = {"lora": "lora_dropout", "dora": "lora_dropout", "dual_lora": "dropout"}
UNCOUNTED = 7  # steps before which a shape is loaded, recorded and ΔW warms up
PROFILED = 3  # steps


class Steps(TrainerCallback):
    """Notes when each step ends: on a GPU by an event, so that no step waits; profiles some after the last counted."""

    def __init__(self, cuda: bool, profiled_after: int | None = None) -> None:
        self._cuda, self._after = cuda, profiled_after
        self._ends: list[Any] = []
        self._profile: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ends.append(timing.mark(self._cuda))
        if self._after is None or not self._cuda:
            return
        if state.global_step == self._after:
            torch.cuda.synchronize()
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]).__enter__()
        elif state.global_step == self._after + PROFILED:
            torch.cuda.synchronize()
            self._profile.__exit__(None, None, None)

    def times(self) -> dict[str, float]:
        """Return median, least and most of the counted steps, ms."""
        found = timing.between(self._ends[UNCOUNTED : self._after], self._cuda)
        return {"median_ms": statistics.median(found), "min_ms": min(found), "max_ms": max(found)}

    def busy_ms(self) -> tuple[float, dict[str, float]] | None:
        """Return how long a kernel ran in a profiled step, and the sum over its kernels by kind; None: not profiled."""
        if self._profile is None:
            return None
        events = self._profile.events()
        events = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        busy = timing.covered((event.time_range.start, event.time_range.end) for event in events)
        sums: dict[str, float] = {}
        for event in events:
            sums[event.name] = sums.get(event.name, 0.0) + event.time_range.elapsed_us() / PROFILED / 1e3
        return busy / PROFILED / 1e3, timing.by_kind(sums)


def measure(method: str, size: dict[str, Any], device: str) -> dict[str, Any]:
    """Return times, memory and what the run says of its graphs, without them and with them, on one model."""
    cuda = device == "cuda"
    found: dict[str, Any] = {}
    model = None
    drops = f"method.{DROPOUT[method]}={size['dropout']}" if "dropout" in size else None
    for way, asked in (("eager", "off"), ("graph", "auto")):
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            profiled = PROFILED if way == "graph" else 0
            words = [f"launch.graphs={asked}", *([drops] if drops else [])]
            config = make_config(method, size, device, Path(folder), *words)
            config = replace(config, profile=replace(config.profile, max_steps=size[way] + profiled))
            model = model or make_model(config, device)
            # accelerate marks a model that it has prepared, and does not give it autocast a second time.
            vars(model).pop("_is_accelerate_prepared", None)
            steps = Steps(cuda, size[way] if profiled else None)
            dtype = "bfloat16" if cuda else "float32"
            said = train(model, config, size, batches=4, dtype=dtype, folder=Path(folder), callbacks=[steps]).graphs
        found[way] = {**steps.times(), "graphs": said}
        if cuda:
            found[way]["peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
            found[way]["reserved_GiB"] = torch.cuda.max_memory_reserved() / 2**30
        busy = steps.busy_ms()
        if busy is not None:
            found |= {"busy_ms": busy[0], "busy_ms_by_kind": busy[1]}
    return found


def run(options: argparse.Namespace) -> None:
    """Time both ways for each size and method, and write each as it is done."""
    device = "cpu" if options.smoke else "cuda"
    results = timing.read(options.output, "graphs")
    results["environment"] = timing.environment(device, ("transformers", "peft", "accelerate"))
    results["made_by"] = "run.py bench graphs"
    for name, size in ({"tiny": TINY} if options.smoke else SIZES).items():
        for method in options.methods or METHODS:
            row = measure(method, size, device)
            results.setdefault("steps", {}).setdefault(name, {})[method] = row
            print(name, method, json.dumps(row), flush=True)
            timing.write(options.output, "graphs", results)
