"""What all benchmarks share: how long a step takes, on what machine, and the file that keeps it."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dual_lora.records import redaction

LIBRARIES = ("deepspeed", "transformers", "accelerate", "peft")


def environment(device: str, libraries: Sequence[str] = ()) -> dict[str, Any]:
    """Return card or processor and versions, for the result file."""
    info: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    if device == "cuda":
        info |= {"card": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda), "triton": version("triton")}
    else:
        info |= {"card": platform.processor() or platform.machine(), "threads": str(torch.get_num_threads())}
    return info | {name: version(name) for name in libraries}


def command() -> str:
    """Return the command that this process was given, as a result file keeps it."""
    return redaction.shareable(["python", "run.py", *sys.argv[1:]])


def quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return the median, and the 20 and 80 per cent quantiles, of two times or more."""
    low, *_, high = statistics.quantiles(milliseconds, n=5)
    return {"p20_ms": low, "median_ms": statistics.median(milliseconds), "p80_ms": high}


def time_steps(
    step: Callable[[], Any], device: str, *, warmup: int, repetitions: int, clock: bool = False
) -> dict[str, float | None]:
    """Return the quantiles of a step, and on a GPU the most memory that the allocator handed out in GiB.

    clock: take the time from the clock, the device synchronised, instead of GPU events (on a CPU always).
    """
    cuda = device == "cuda"
    for _ in range(warmup):
        step()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repetitions):
        if cuda and not clock:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            step()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
            continue
        begun = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begun))
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    return {**quantiles(times), "peak_GiB": peak}


def mark(cuda: bool) -> Any:
    """Return this moment: on a GPU an event, so that nothing waits for it."""
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(marks: Sequence[Any], cuda: bool) -> list[float]:
    """Return the milliseconds from each mark to the next."""
    pairs = zip(marks, marks[1:], strict=False)
    if not cuda:
        return [1e3 * (end - begin) for begin, end in pairs]
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs]


# What a kernel's name holds, and the kind that it is counted to.
KINDS = {
    "build_weight": "build", "reduce_gradient": "reduce", "finish_gradient": "finish", "pack_factors": "pack",
    "nvjet": "GEMM", "gemm": "GEMM", "cutlass": "GEMM", "flash": "attention", "fmha": "attention", "adam": "AdamW",
    "fused_dropout": "dropout", "masked_scale": "dropout",
}  # fmt: skip


def by_kind(milliseconds: Mapping[str, float]) -> dict[str, float]:
    """Return the times of kernels, by their names, added up by kind."""
    totals: dict[str, float] = {}
    for name, time_ in milliseconds.items():
        kind = next((kind for part, kind in KINDS.items() if part in name.lower()), "other")
        totals[kind] = totals.get(kind, 0.0) + time_
    return totals


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of the spans (begin, end) was under way; kernels of two streams overlap."""
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def start_method() -> str:
    """Return how a benchmark starts its processes; where no GPU is timed, as forks of one that has the imports."""
    if torch.cuda.is_available():
        return "spawn"
    multiprocessing.set_forkserver_preload(["dual_lora.benchmarks.zero", "dual_lora.benchmarks.fsdp"])
    return "forkserver"


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def describe_group(rank: int, world_size: int, port: int) -> None:
    """Set what `dual_lora.launch.group` gives process `rank` of a group on this machine."""
    os.environ |= {"TORCHELASTIC_RUN_ID": f"bench-{port}", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for library in ("GLOO", "NCCL"):  # a machine without a network may not know its own name
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")


def captured(step: Callable[[], Any], warmup: int = 3) -> Callable[[], Any]:
    """Return the replay of `step` as a CUDA graph: GPU time without the launches. Without a GPU `step` itself."""
    if not torch.cuda.is_available():
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def read(folder: Path, name: str) -> dict[str, Any]:
    """Return what a result file holds; nothing where there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(folder: Path, name: str, results: dict[str, Any]) -> Path:
    """Write a result file and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}", flush=True)
    return path
