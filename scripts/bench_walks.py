"""Time the Trainer's steps with its walks over all modules against ours without them (`dual_lora.training.walks`).

    python scripts/bench_walks.py                       # a CPU: results/benchmarks/walks_cpu.json
    python scripts/bench_walks.py --device cuda         # one GPU, SmolLM2-135M's dimensions: walks.json
    python scripts/bench_walks.py --smoke --output F    # does it still run?

A step is one of `dual_lora.training.trainer` on random tokens. On the CPU the model has 30 narrow layers, so that a
step is host time almost alone, as a small model's is on a fast GPU. Both ways train in turn, several times; times are
medians of the clock from step to step, with 20 and 80 per cent quantiles; a training's first steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_kernels import RESULTS, environment
from bench_zero import make_config, make_model
from transformers import Trainer, TrainerCallback

from dual_lora.config.schedule import plan_batches
from dual_lora.evaluation.causal_lm import Collator
from dual_lora.models.tiny_tokenizer import tiny_tokenizer
from dual_lora.tasks.base import Head
from dual_lora.training import trainer

METHODS = ("lora", "dual_lora")
NARROW = {
    "hidden_size": 32, "intermediate_size": 64, "num_layers": 30, "num_heads": 4, "num_key_value_heads": 4,
    "vocab_size": 512, "batch": 2, "length": 16, "steps": 40, "rounds": 3,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "cpu": NARROW,
    "cuda": {
        "hidden_size": 576, "intermediate_size": 1536, "num_layers": 30, "num_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "batch": 32, "length": 64, "steps": 40, "rounds": 3,
    },
    "smoke": {**NARROW, "num_layers": 2, "steps": 4, "rounds": 1},
}  # fmt: skip
_UNCOUNTED = 3


class Clock(TrainerCallback):
    """Notes when each step ends, the device's work included."""

    def __init__(self, cuda: bool) -> None:
        self._cuda, self.ends = cuda, list[float]()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


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
        config = make_config(method, "plain", size, device, folder)
        config = replace(config, profile=replace(config.profile, max_steps=size["steps"] + _UNCOUNTED))
        clock = Clock(device == "cuda")
        tokenizer = tiny_tokenizer("llama", max_length=size["length"])
        tokenizer.pad_token = tokenizer.eos_token
        ids = torch.randint(size["vocab_size"], (4 * size["batch"], size["length"])).tolist()
        trainer.train(
            make_model(config, device),
            config,
            trainer.Data(
                tokenizer,
                Collator(tokenizer),
                [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row} for row in ids],
                [],
            ),
            batches=plan_batches(config),
            dtype="bfloat16" if device == "cuda" else "float32",
            folder=Path(folder),
            head=Head("causal_lm"),
            callbacks=[clock],
        )
    pairs = zip(clock.ends[_UNCOUNTED - 1 :], clock.ends[_UNCOUNTED:], strict=False)
    return [1e3 * (end - begin) for begin, end in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the result file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--smoke", action="store_true", help="two layers, a few steps")
    options = parser.parse_args()
    size = SIZES["smoke" if options.smoke else options.device]
    results: dict[str, Any] = {"environment": environment(options.device), "size": size}
    for method in METHODS:
        found: dict[str, list[float]] = {"trainer": [], "ours": []}
        for _ in range(size["rounds"]):
            with as_the_trainer_does():
                found["trainer"] += times(method, size, options.device)
            found["ours"] += times(method, size, options.device)
        results[method] = {}
        for way, ms in found.items():
            low, *_, high = statistics.quantiles(ms, n=5)
            results[method][way] = {"p20_ms": low, "median_ms": statistics.median(ms), "p80_ms": high, "steps": len(ms)}
        results[method]["ratio"] = results[method]["ours"]["median_ms"] / results[method]["trainer"]["median_ms"]
        print(method, json.dumps(results[method]), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    name = "walks.json" if options.device == "cuda" else "walks_cpu.json"
    (options.output / name).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
