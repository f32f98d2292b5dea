"""Measure runs on several GPUs of one host, each a `python run.py ... launch=fsdp launch.num_gpus=N`, or another group.

    python run.py bench scaling --gpus 2                              # all parts, about 20 minutes on H200s
    python run.py bench scaling --gpus 4 --parts large --layers 80 --weights /dev/shm/scaling
    python run.py bench scaling --gpus 2 --parts speed --only dora-zero3 'lora-*'
    python run.py bench scaling --smoke --output FOLDER               # two CPU processes, tiny models

  same    SmolLM2's dimensions on one GPU and on N, under DDP, fsdp, ZeRO-2 and ZeRO-3: the same curve, and the same
          record identity? Also one GPU that takes the batch at once, which only changes the order of its sums, and in
          bfloat16 fsdp a second time, against its first
  killed  SmolLM2's dimensions on N GPUs under fsdp; one process is killed: how soon does the group end, and does the
          same command continue to the same numbers?
  speed   LLaMA-7B's dimensions, LoRA, DoRA and Dual LoRA: one GPU, and N under DDP, fsdp, ZeRO-2 and ZeRO-3; tokens
          per second, memory of every process, efficiency = tokens/s on N over N times tokens/s on one
  large   as many layers of LLaMA-3-70B as --layers says, under fsdp: loads, trains, saves its adapter whole

`same` and `killed` share the cards: only the end of a group is timed there. Groups of `speed` and `large` have the host
to themselves while they train. The next one starts when the last step is done, as its processes load libraries for
longer than the others take to end. One GPU is measured on each of the cards at the same time, before the groups.
Groups are compared with the mean, and each measurement is kept too. No step of `speed` is a CUDA graph: a group that
shares weights cannot have them, and what is compared is the sharing. All weights are random. Sequences of these parts
all have the same length, so no process waits for another's padding, and every process takes one micro-batch of 32 per
step, alone or in a group. Rates are medians over the steps after the first quarter.

Runs are in --scratch; a finished one is not repeated, so a stopped command continues. Every run has a row in
OUTPUT/scaling.jsonl; the results are in OUTPUT/scaling.json by N, each written when it is there, next to those that are
not measured again. --only takes patterns of METHOD-GROUP (`speed`) and METHOD-DTYPE-GROUP (`same`); what they are
compared with is run too.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dual_lora import shipped
from dual_lora.benchmarks import timing
from dual_lora.benchmarks.scaling_runs import (
    Run,
    curve_difference,
    keep,
    kill_one_process,
    speed_of,
    whole_adapter,
)
from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.distributed import processes
from dual_lora.models.random_checkpoint import write_llama

METHODS = ("lora", "dual_lora", "dora")
GROUPS = {
    "fsdp": ["launch=fsdp"],
    "ddp": ["launch=torchrun"],
    "zero2": ["launch=deepspeed", "launch.zero_stage=2"],
    "zero3": ["launch=deepspeed", "launch.zero_stage=3"],
}
AGAIN = "again"  # fsdp a second time, against its first
CURVES = [
    ("dual_lora", "float32", (*GROUPS,)),
    ("dual_lora", "bfloat16", (*GROUPS, AGAIN)),
    ("lora", "float32", ("fsdp", "zero2", "zero3")),
    ("dora", "float32", ("ddp", "fsdp")),
]
PARTS = ("killed", "same", "speed", "large")
ROUNDS = (PARTS[:2], PARTS[2:3], PARTS[3:])  # in this order; those of one run at the same time
# Relative, of the losses of the first ten steps: docs/launching.md. Later on rounding grows, as in any training.
BOUNDS = {"float32": 2e-5, "bfloat16": 5e-3}
GONE_SECONDS = 60.0
MICRO_BATCH = 32
LAYERS_OF_A_CARD = 32  # of LLaMA-3-70B, in 80 GB: 1.7 GB each
# Sample data under the published protocol, cut at 128 tokens, which all of them have under the small tokenizer.
UNIFORM = ["task=commonsense", "data.source=sample", "protocol=paper", "protocol.max_length_tokens=128"]
UNIFORM += ["profile=trial", "recipe.epochs=1000", "launch.save_every_steps=100000"]


class Bench:
    """Where runs are made and what they showed."""

    def __init__(self, args: argparse.Namespace, every: dict[str, Any]) -> None:
        self.output, self.every, self.only = args.output, every, args.only or ["*"]
        self.gpus, self.smoke, self.batch = args.gpus, args.smoke, 8 if args.smoke else 32
        self.layers = 2 if args.smoke else args.layers or min(80, LAYERS_OF_A_CARD * args.gpus)
        self.scratch = args.scratch or shipped.checkout() / "results" / "local" / "scaling"
        self.weights, self.table = args.weights or self.scratch, args.output / "scaling.jsonl"
        self.written: set[Path] = set()
        self.writing = threading.Lock()
        self.cards = [] if args.smoke else processes.visible_cards()
        firsts = range(0, len(self.cards) - args.gpus + 1, args.gpus)
        lanes = [",".join(self.cards[first : first + args.gpus]) for first in firsts]
        self.lanes: list[str | None] = [*lanes] or [None]
        self.share(self.lanes, 1)
        self.device = ["launch.device=cpu"] if args.smoke else []
        self.methods = ("dual_lora",) if args.smoke else tuple(args.methods or METHODS)
        self.groups = ("fsdp",) if args.smoke else tuple(GROUPS)

    def chosen(self, name: str) -> bool:
        """Return whether the group is measured: METHOD-GROUP or METHOD-DTYPE-GROUP."""
        return any(fnmatch(name, pattern) for pattern in self.only)

    def found(self, part: str, *keys: str, **measured: Any) -> None:
        """Keep what was measured, and when and how: a command that is cut off loses only what it was measuring."""
        with self.writing:
            results = self.every.setdefault(str(self.gpus), {})
            machine = timing.environment("cpu" if self.smoke else "cuda", timing.LIBRARIES)
            results["environment"] = machine | {"gpus": self.gpus}
            entry = results.setdefault(part, {})
            entry["command"] = timing.command()
            for key in keys:
                entry = entry.setdefault(key, {})
            entry.update(measured)
            timing.write(self.output, "scaling", self.every)
        print(f"{part}, {', '.join(keys)}: {json.dumps(measured)}", flush=True)

    def share(self, places: Sequence[str | None], runs: int) -> None:
        """From now on each of these sets of cards is taken by so many runs at a time; the others wait."""
        self.free: queue.Queue[str | None] = queue.Queue()
        for place in list(places) * runs:
            self.free.put(place)

    @contextmanager
    def place(self, free: queue.Queue[str | None] | None = None) -> Iterator[str | None]:
        """Hold a set of cards, by default of those that are shared, as soon as there is one."""
        free = free or self.free
        cards = free.get()
        try:
            yield cards
        finally:
            free.put(cards)

    def run(
        self,
        name: str,
        *words: str,
        one_of: int | None = None,
        free: queue.Queue[str | None] | None = None,
        steps: int | None = None,
    ) -> Run:
        """Make one run when there is room for it, and keep its row.

        one_of: take only this one of the free cards, modulo their number.
        free: where to wait for cards, by default those that are shared.
        steps: leave the cards to the next run after so many, by default at the end.
        """
        with self.place(free) as cards:
            begun = time.perf_counter()
            if cards is not None and one_of is not None:
                cards = cards.split(",")[one_of % self.gpus]
            made = Run(self.scratch / name, [*words, *self.device], cards)
            if steps is None:
                made.wait()
            else:
                made.wait_for_step(steps)
        made.wait()
        keep(self.table, name, made.record)
        print(f"{name}: {made.record['status']} after {time.perf_counter() - begun:.0f} s", flush=True)
        return made

    def group(self, name: str) -> list[str]:
        """N processes."""
        return [*GROUPS[name], f"launch.num_gpus={self.gpus}"]

    def same(self) -> None:
        """Curves of N processes against those of one, for each method and dtype of `CURVES`."""
        words, every = self.short(), [CURVES[0]] if self.smoke else CURVES
        jobs: dict[tuple[str, str, str], Any] = {}
        with ThreadPoolExecutor(16) as pool:
            for number, (method, dtype, groups) in enumerate(every):
                own, title = [*words, f"method={method}", f"model.dtype={dtype}"], f"{self.gpus}/same-{method}-{dtype}"
                known = [name for name in groups if name in (*self.groups, AGAIN)]
                chosen = [name for name in known if self.chosen(f"{method}-{dtype}-{name}")]
                # "whole": what another order of the same sums does, without any other process.
                for name, more in {"one": [], "whole": [f"launch.per_device_batch={self.batch}"]}.items():
                    if chosen:
                        given = [f"{title}-{name}", *own, *more]
                        jobs[method, dtype, name] = pool.submit(self.run, *given, one_of=number)
                for name in dict.fromkeys(["fsdp", *chosen] if AGAIN in chosen else chosen):
                    group = self.group("fsdp" if name == AGAIN else name)
                    jobs[method, dtype, name] = pool.submit(self.run, f"{title}-{name}", *own, *group)
            for (method, dtype, name), job in jobs.items():
                if name != "one":
                    one, made = jobs[method, dtype, "fsdp" if name == AGAIN else "one"].result(), job.result()
                    entry = curve_difference(one, made) | {"same_identity": made.identity == one.identity}
                    entry["bound"] = 0.0 if name == AGAIN else BOUNDS[dtype]
                    entry["within_bound"] = entry["largest_of_first_ten"] <= entry["bound"]
                    self.found("same", f"{method}, {dtype}", name, **entry)

    def short(self) -> list[str]:
        """A short training of the commonsense task, validated and not tested."""
        steps, batch = 12 if self.smoke else 100, self.batch
        with self.writing:  # `same` and `killed` share it
            words = self.checkpoint("short", "model=tiny_llama" if self.smoke else "model=smollm2")
        words += ["data.source=sample", "task=commonsense", "task.target=text", "protocol=strict", "profile=trial"]
        words += [f"profile.max_steps={steps}", f"profile.train_examples={steps * batch}"]
        words += ["profile.validation_examples=64", "recipe.epochs=1000"]
        return [*words, f"recipe.global_batch={batch}", f"launch.per_device_batch={batch // self.gpus}"]

    def killed(self) -> None:
        """One process dies by SIGKILL in the middle; the same command is given again."""
        words = [*self.short(), "method=dual_lora", "model.dtype=float32", *self.group("fsdp")]
        words += [f"launch.save_every_steps={4 if self.smoke else 20}"]
        once, never = f"{self.gpus}/killed-once", f"{self.gpus}/killed-never"
        shutil.rmtree(self.scratch / once, ignore_errors=True)
        with ThreadPoolExecutor(2) as pool:
            whole = pool.submit(self.run, never, *words)
            twin = pool.submit(self.run, f"{never}-twin", *words)  # how equal are two undisturbed runs?
            with self.place() as cards:
                dying = Run(self.scratch / once, [*words, *self.device], cards)
                found = {"group": "fsdp"} | kill_one_process(dying, after_step=6 if self.smoke else 50)
                self.found("killed", **found, bound_seconds=GONE_SECONDS)
            keep(self.table, f"{self.gpus}/killed-at-once", dying.record)
            again = self.run(once, *words)
            entry = curve_difference(whole.result(), again)
            twins = curve_difference(whole.result(), twin.result())
        found |= {"resumed_from": again.record["execution"]["resumed_from"], "curve": entry, "undisturbed": twins}
        self.found("killed", **found, same_scores=again.scores == whole.result().scores)

    def speed(self) -> None:
        """Rates and memory on one GPU and on N."""
        model, steps = ("model=tiny_llama" if self.smoke else "model=llama"), 24
        words = [*self.checkpoint("speed", model), *UNIFORM, "profile.validation_examples=8"]
        words += [f"profile.max_steps={steps}", f"launch.per_device_batch={MICRO_BATCH}", "launch.graphs=off"]
        places: list[queue.Queue[str | None]] = [queue.Queue() for _ in range(self.gpus)]
        for card, place in enumerate(places):
            place.put(self.lanes[0] and self.lanes[0].split(",")[card])

        def one(card: int, method: str) -> Run:
            own = [*words, f"method={method}", f"recipe.global_batch={MICRO_BATCH}"]
            return self.run(f"1/speed-{method}-{card}", *own, free=places[card], steps=steps)

        def several(method: str, name: str) -> Run:
            own = [*words, f"method={method}", f"recipe.global_batch={self.gpus * MICRO_BATCH}", *self.group(name)]
            return self.run(f"{self.gpus}/speed-{method}-{name}", *own, steps=steps)

        self.share(self.lanes[:1], 1)  # side by side groups slow each other
        cases = [(method, name) for method in self.methods for name in self.groups if self.chosen(f"{method}-{name}")]
        if not cases:
            return
        singles = [(card, method) for method in dict(cases) for card in range(self.gpus)]
        with ThreadPoolExecutor(16) as pool:
            alone_on = dict(zip(singles, pool.map(one, *zip(*singles, strict=True)), strict=True))
            for method in dict(cases):
                self.found("speed", method, "one", **speed_of([alone_on[card, method] for card in range(self.gpus)]))
            for (method, name), made in zip(cases, pool.map(several, *zip(*cases, strict=True)), strict=True):
                speed = speed_of([made])
                one_rate = self.every[str(self.gpus)]["speed"][method]["one"]["tokens_per_second"]
                self.found("speed", method, name, **speed, efficiency=speed["tokens_per_second"] / one_rate / self.gpus)
        self.drop()

    def large(self) -> None:
        """A model that no single GPU holds."""
        model = ["model=tiny_llama" if self.smoke else "model=llama3_70b"]
        model += [f"model.dimensions.num_layers={self.layers}"]
        words = [*self.checkpoint(f"large-{self.layers}", *model), *UNIFORM, "method=dual_lora", *self.group("fsdp")]
        words += [f"recipe.global_batch={4 * self.gpus}", "launch.per_device_batch=4", "profile.max_steps=12"]
        words += ["profile.validation_examples=4", "launch.gradient_checkpointing=true"]
        self.share(self.lanes[:1], 1)
        made = self.run(f"{self.gpus}/large", *words)
        self.drop()
        found = {"layers": self.layers, "group": "fsdp", "parameters": made.record["cost"]["total_parameters"]}
        found |= {"loss": made.record["curves"]["train_loss"], **speed_of([made]), "adapter": whole_adapter(made)}
        self.found("large", **found)

    def checkpoint(self, name: str, *model: str) -> list[str]:
        """Random weights as files, so that they are read as those of any checkpoint."""
        folder = self.weights / f"{name}.weights"
        if folder.exists():
            print(f"{folder}: found, and left in its place afterwards", flush=True)
        else:
            self.written.add(folder)
            [config] = compose([*model, "task=commonsense", "method=none", "data.source=sample"])
            write_llama(config.model, folder, workers=1 if self.smoke else 16)
        return [*model, f"model.path={folder}"]

    def drop(self) -> None:
        """Free the memory or disk that the weights take which were written here."""
        while self.written:
            shutil.rmtree(self.written.pop(), ignore_errors=True)


def run(args: argparse.Namespace) -> None:
    """Run the parts and write each as it is done. Raises `ConfigError` for what would fail after minutes."""
    check(args)
    bench = Bench(args, timing.read(args.output, "scaling"))
    for together in ROUNDS:
        # SmolLM2 takes 13 GiB of a card in a group of two, 8 in one of four.
        bench.share(bench.lanes, 3 if args.smoke else 5 if args.gpus == 2 else 8)
        begun = time.perf_counter()
        with ThreadPoolExecutor(len(together)) as pool:
            jobs = {part: pool.submit(getattr(bench, part)) for part in together if part in (args.parts or PARTS)}
        for part, job in jobs.items():
            job.result()
            bench.found(part, seconds=round(time.perf_counter() - begun, 1))
    bench.drop()


def check(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for what would fail after minutes."""
    if args.gpus < 2:
        raise ConfigError(f"--gpus {args.gpus}: nothing to compare with one; 2 or more")
    names = [f"{method}-{name}" for method in METHODS for name in GROUPS]
    names += [f"{method}-{dtype}-{name}" for method, dtype, groups in CURVES for name in groups]
    if unknown := [pattern for pattern in args.only or () if not any(fnmatch(name, pattern) for name in names)]:
        raise ConfigError(f"--only {unknown[0]}: matches none of {', '.join(names)}")
    if args.smoke:
        return
    if len(cards := processes.visible_cards()) < args.gpus:
        raise ConfigError(f"--gpus {args.gpus}: torch finds {len(cards)}; --smoke runs tiny models on a CPU")
    if args.layers is not None and not 1 <= args.layers <= 80:
        raise ConfigError(f"--layers {args.layers}: LLaMA-3-70B has 80; 1 to 80")
