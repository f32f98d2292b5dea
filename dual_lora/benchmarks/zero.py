"""Time training steps of one process under `launch=deepspeed launch.zero_stage=2` against plain ones.

With one process there is nothing to split: the suite then uses stage 0 (`deepspeed.zero_stage`), so this measures the
cost of DeepSpeed itself. Before that it measured the cost of stage 2's hooks.

    python run.py bench zero         # one GPU, about a minute: results/benchmarks/zero.json

The model has the shape of TinyLlama (1.1 billion parameters) and random bf16 weights, made on the device; a step is 8 x
512 random tokens through the suite's own training path (`dual_lora.training.trainer`: Trainer, autocast, clipping,
AdamW, the loss curve). Every variant trains in its own process and all of them stay alive. They run blocks of steps in
turn, back and forth, one at a time, so that a drift of the machine affects all alike. The first step of a block is not
counted. Times are medians with 20 and 80 per cent quantiles of GPU time from step to step (CPU: of the clock).
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from dual_lora.benchmarks import timing
from dual_lora.benchmarks.suite_steps import make_config, make_model, train
from dual_lora.config import ConfigError
from dual_lora.distributed import deepspeed, processes

METHODS = ("lora", "dual_lora")
LAUNCHERS = {"plain": ("launch=local",), "zero2": ("launch=deepspeed", "launch.num_gpus=1", "launch.zero_stage=2")}
TARGET = 1.05  # ZeRO-2's step over the plain one
PATIENCE = 300.0  # seconds until a process that says nothing is given up: it may be compiling kernels
TINY_LLAMA_1B = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_layers": 22, "num_heads": 32, "num_key_value_heads": 4,
    "vocab_size": 32000,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "full": {"dimensions": TINY_LLAMA_1B, "batch": 8, "length": 512, "warmup": 10, "steps": 10, "rounds": 6},
    "smoke": {"batch": 4, "length": 32, "warmup": 2, "steps": 4, "rounds": 2},
}


class Blocks(TrainerCallback):
    """Trains in blocks of steps, each when the parent asks for it, and reports how long its steps took."""

    def __init__(self, parent: Connection, device: str) -> None:
        self._parent, self._cuda = parent, device == "cuda"
        self._left = 0
        self._marks: list[Any] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._parent.send("ready")
            self._next(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._marks.append(timing.mark(self._cuda))
        self._left -= 1
        if self._left == 0:
            self._parent.send(self._report())
            self._next(control)

    def _next(self, control: Any) -> None:
        self._left, self._marks = self._parent.recv(), []
        if self._left == 0:
            control.should_training_stop = True
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def _report(self) -> dict[str, Any]:
        times = timing.between(self._marks, self._cuda)
        return {"ms": times, "peak_bytes": torch.cuda.max_memory_allocated() if self._cuda else None}


def work(parent: Connection, method: str, launcher: str, size: dict[str, Any], device: str, folder: str) -> None:
    """One process: a run's training, up to the parent's last word."""
    if launcher != "plain":
        timing.describe_group(0, 1, timing.free_port())
    processes.join(device)
    config = make_config(method, size, device, Path(folder), *LAUNCHERS[launcher])
    deepspeed.trust_own_types(config)
    deepspeed.compile_nothing(config)
    model = make_model(config, device)
    callbacks = [Blocks(parent, device)]
    train(model, config, size, batches=16, dtype="bfloat16", folder=Path(folder), callbacks=callbacks)
    processes.leave()


class Worker:
    """A process that trains one variant, as its parent sees it."""

    def __init__(self, method: str, launcher: str, size: dict[str, Any], device: str, folder: Path) -> None:
        self.method, self.launcher, self.name = method, launcher, f"{method}, {launcher}"
        self.times: list[float] = []
        self.peaks: list[int] = []
        context: Any = multiprocessing.get_context(timing.start_method())
        self._pipe, other = context.Pipe()
        arguments = (other, method, launcher, size, device, str(folder / f"{method}-{launcher}"))
        self._process = context.Process(target=work, args=arguments, daemon=True)
        self._process.start()
        other.close()

    def ask(self, steps: int) -> None:
        """Start a block of steps; 0 ends the process."""
        self._pipe.send(steps)

    def answer(self) -> Any:
        """Return what the process says next. Raises `RuntimeError` if it is gone or silent."""
        if not self._pipe.poll(PATIENCE):
            raise RuntimeError(f"{self.name}: silent for {PATIENCE:.0f} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(
                f"{self.name}: the process ended before its steps were done; its error is above"
            ) from None

    def block(self, steps: int) -> None:
        """Run a block and keep its times."""
        self.ask(steps + 1)
        report = self.answer()
        self.times += report["ms"]
        self.peaks += [report["peak_bytes"]] if report["peak_bytes"] is not None else []

    def result(self) -> dict[str, float]:
        """Median and quantiles of a step in milliseconds, peak memory in GiB where there is a card."""
        found = timing.quantiles(self.times) | {"steps": len(self.times)}
        return found | ({"peak_GiB": max(self.peaks) / 2**30} if self.peaks else {})

    def end(self) -> None:
        """End the process, in good order if it still listens."""
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()


def bench(chosen: list[str], size: dict[str, Any], device: str) -> dict[str, Any]:
    """Return {method: {plain, zero2, ratio}}; the ratio is that of the medians."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [Worker(m, launcher, size, device, Path(folder)) for m in chosen for launcher in LAUNCHERS]
        for worker in workers:
            worker.answer()
        print(f"{len(workers)} processes are ready", flush=True)
        for worker in workers:  # all at once: kernels compile, the allocator grows
            worker.ask(size["warmup"])
        for worker in workers:
            worker.answer()
        for number in range(size["rounds"]):
            for worker in workers if number % 2 == 0 else reversed(workers):
                worker.block(size["steps"])
        for worker in workers:
            worker.ask(0)
        for worker in workers:
            worker.end()
    results: dict[str, Any] = {}
    for worker in workers:
        results.setdefault(worker.method, {})[worker.launcher] = worker.result()
    for found in results.values():
        found["ratio"] = found["zero2"]["median_ms"] / found["plain"]["median_ms"]
    return results


def run(options: argparse.Namespace) -> None:
    """Time both launchers and write the result file. Raises `ConfigError` without a GPU."""
    begun = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES["smoke" if options.smoke else "full"]
    if device == "cpu" and not options.smoke:
        raise ConfigError("torch finds no CUDA device and a CPU would take hours; use --smoke for a tiny model")
    measured = bench(options.methods or list(METHODS), size, device)
    seconds = round(time.perf_counter() - begun, 1)
    results = {
        "environment": timing.environment(device, timing.LIBRARIES),
        "zero": {"command": timing.command(), "seconds": seconds, "smoke": options.smoke, "size": size, **measured},
    }
    for method, found in measured.items():
        plain, zero2 = found["plain"]["median_ms"], found["zero2"]["median_ms"]
        print(f"{method}: plain {plain:.2f} ms, ZeRO-2 {zero2:.2f} ms, ratio {found['ratio']:.3f} (≤ {TARGET})")
    timing.write(options.output, "zero", results)
