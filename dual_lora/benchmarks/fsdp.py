"""Time training steps on one GPU, under DDP and under `launch=fsdp`, and compare what they lose.

    python run.py bench fsdp --gpus 2    # about six minutes on two GPUs: results/benchmarks/fsdp.json
    python run.py bench fsdp --parts checkpointing --methods lora    # the file keeps the other rows
    python run.py bench fsdp --gpus 4 --parts large    # LLaMA-3-70B's shape, two minutes; only if it is asked for

The model has LLaMA-7B's shape and random bf16 weights; a step is 16 x 256 random tokens a GPU, bf16 autocast, clipping
and fused AdamW, with the functions that the Trainer calls (`distributed.sharding`, `distributed.ordered_reduce`).
One GPU is timed on all of them at once, so that all share one power supply. Efficiency is its median step over the
group's. "in turn" is one process that takes the micro-batches of all: its losses are those that a group must have,
with checkpointing too. "large" draws the weights, 142 GB, where they are kept: no file holds them, and no host.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.nn.functional import cross_entropy

from dual_lora.benchmarks import random_models, timing
from dual_lora.benchmarks.training import adapter_config, make_model
from dual_lora.config import ConfigError
from dual_lora.distributed import ordered_reduce, processes, sharding

METHODS = ("lora", "dora", "dual_lora")
KINDS = ("one GPU", "DDP", "fsdp")
IN_TURN = "in turn"
PARTS = ("steps", "checkpointing", "large")
SIZES: dict[str, dict[str, Any]] = {
    "full": {"model": "llama", "batch": 16, "length": 256, "warmup": 4, "steps": 12},
    "smoke": {"model": "tiny_llama", "batch": 2, "length": 8, "warmup": 1, "steps": 3},
}
LARGE = {"model": "llama3_70b", "length": 128, "warmup": 2, "steps": 6, "dropout": 0.05, "in_shards": True}
LARGE_BATCHES = (4, 16)


def cases(methods: Sequence[str], parts: Sequence[str] = PARTS[:2]) -> list[tuple[str, str, bool]]:
    """Return (kind, method, checkpointing) of everything that is timed."""
    kinds = {"steps": (*KINDS, IN_TURN), "checkpointing": KINDS}
    parts = [part for part in parts if part in kinds]
    return [(kind, method, part == "checkpointing") for part in parts for method in methods for kind in kinds[part]]


def time_case(kind: str, method: str, checkpointing: bool, size: dict[str, Any], device: str) -> dict[str, Any]:
    """Train some steps in this process of the group; return times, memory and the losses, means over the processes."""
    cuda, rank, world = device != "cpu", dist.get_rank(), dist.get_world_size()
    if "in_shards" in size:
        base = random_models.made_in_shards(random_models.named(size["model"]), torch.device(device))
        base.requires_grad_(False)
    else:
        base = make_model(size["model"], device)
        if kind == "fsdp":
            sharding.shard(base, torch.device(device).type)
    torch.manual_seed(1)
    with sharding.whole_while_adapted():
        model = get_peft_model(base, adapter_config(method, size.get("dropout", 0.0))).train()
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=cuda)
    called: Callable[..., Any] = model
    if kind == "DDP":
        wrapped = torch.nn.parallel.DistributedDataParallel(model, device_ids=[rank] if cuda else None)
        ordered_reduce.register_ordered_hook(wrapped)
        called = wrapped
    turns = list(range(world)) if kind == IN_TURN else [rank]
    data = {turn: _tokens(turn, size, base.config.vocab_size, device) for turn in turns}
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    losses, marks = [], [timing.mark(cuda)]
    for _ in range(size["warmup"] + size["steps"]):
        parts = []
        for turn in turns:
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                logits = called(input_ids=data[turn], use_cache=False).logits[:, :-1]
            loss = cross_entropy(logits.float().flatten(0, 1), data[turn][:, 1:].flatten())
            (loss / len(turns)).backward()
            parts.append(loss.detach())
        if kind == "fsdp":
            sharding.average_gradients(trained)
            sharding.clip_together(trained, 1.0)
        else:
            ordered_reduce.clip(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(torch.stack(parts).cpu() if not cuda else torch.stack(parts))
        marks.append(timing.mark(cuda))
    found = timing.quantiles(timing.between(marks, cuda)[size["warmup"] :])
    if cuda:
        found["peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
    own = torch.stack(losses).tolist()
    everyones = [own] if kind in ("one GPU", IN_TURN) else processes.gather(own)
    means = [sum(sum(parts, [])) / len(sum(parts, [])) for parts in zip(*everyones, strict=True)]
    return {**found, "losses": means}


def _tokens(process: int, size: dict[str, Any], vocabulary: int, device: str) -> torch.Tensor:
    draw = torch.Generator().manual_seed(100 + process)
    return torch.randint(3, vocabulary, (size["batch"], size["length"]), generator=draw).to(device)


def _case(row: dict[str, Any]) -> tuple[str, str, bool]:
    return row["kind"], row["method"], row["checkpointing"]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return `rows` (kind, method, checkpointing, times, losses) with efficiencies and where losses first differ."""
    by = {_case(row): row for row in rows}
    for (kind, method, on), row in by.items():
        one, same = by.get(("one GPU", method, on)), by.get((IN_TURN, method, False))
        if kind not in ("one GPU", IN_TURN):
            row["efficiency"] = one["median_ms"] / row["median_ms"] if one else None
            if same:
                pairs = enumerate(zip(same["losses"], row["losses"], strict=False))  # steps that both took
                row["first_other_loss"] = next((step for step, (a, b) in pairs if a != b), None)
    order = cases(METHODS)
    return {"rows": sorted(by.values(), key=lambda row: order.index(_case(row)))}


def work(rank: int, port: int, chosen: list[tuple[str, str, bool]], found: dict[str, Any], folder: Path) -> None:
    """One process of the group: all chosen cases, each of which the first process writes next to `found`."""
    timing.describe_group(rank, found["gpus"], port)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processes.join(device)
    rows = found.pop("rows")
    for case in chosen:
        row = dict(zip(("kind", "method", "checkpointing"), case, strict=True))
        rows.append(row | time_case(*case, found["size"], processes.device_name(device)))
        gc.collect()
        torch.cuda.empty_cache()
        if rank == 0:
            print(" ".join(map(str, case)), f"{rows[-1]['median_ms']:.1f} ms", flush=True)
            timing.write(folder, "fsdp", found | summary(rows))
    processes.leave()


def work_large(rank: int, port: int, found: dict[str, Any], large: dict[str, Any], folder: Path) -> None:
    """One process of the group that trains a model which no GPU holds; the first one writes each row into `found`."""
    timing.describe_group(rank, large["gpus"], port)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processes.join(device)
    for batch in LARGE_BATCHES:
        size = large["size"] | {"batch": batch}
        row = time_case("fsdp", "dual_lora", True, size, processes.device_name(device))
        rate = 1e3 * large["gpus"] * batch * size["length"] / row["median_ms"]
        large["rows"].append({"batch": batch, "tokens_per_second": rate} | row)
        gc.collect()
        torch.cuda.empty_cache()
        if rank == 0:
            print(f"large, {batch} x {size['length']}: {rate:,.0f} tokens/s", flush=True)
            timing.write(folder, "fsdp", found | {"large": large})
    processes.leave()


def run(options: argparse.Namespace) -> None:
    """Time all cases and write the result file. Raises `ConfigError` where there are too few GPUs."""
    if torch.cuda.device_count() < options.gpus and not options.smoke:
        raise ConfigError(f"--gpus {options.gpus}, but torch finds {torch.cuda.device_count()}; use --smoke on a CPU")
    parts = options.parts or PARTS[:2]
    chosen = cases(options.methods or METHODS, parts)
    machine = timing.environment("cuda" if torch.cuda.is_available() else "cpu", timing.LIBRARIES[1:])
    if "large" in parts:
        size = LARGE | (SIZES["smoke"] if options.smoke else {})
        large = {"environment": machine, "command": timing.command(), "gpus": options.gpus, "size": size, "rows": []}
        _in_group(options.gpus, work_large, timing.read(options.output, "fsdp"), large, options.output)
    if not chosen:
        return
    found = {
        "environment": machine,
        "command": timing.command(),
        "gpus": options.gpus,
        "size": SIZES["smoke" if options.smoke else "full"],
    }
    before, again = timing.read(options.output, "fsdp"), {case[1:] for case in chosen}
    alike = all(before.get(key) == found[key] for key in ("environment", "gpus", "size"))
    kept = {case for case in cases(METHODS) if alike and case[1:] not in again}
    before = before if alike else {key: value for key, value in before.items() if key == "large"}
    found = before | found | {"rows": [row for row in before.get("rows", ()) if _case(row) in kept]}
    _in_group(options.gpus, work, chosen, found, options.output)


def _in_group(gpus: int, body: Callable[..., None], *arguments: Any) -> None:
    arguments = (timing.free_port(), *arguments)
    torch.multiprocessing.start_processes(body, arguments, nprocs=gpus, start_method=timing.start_method())
