"""What a run used of its machine, for the record's `execution`."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import platform
import re
from contextlib import suppress
from pathlib import Path

import torch


def device(kind: str) -> str:
    """Return the name of this process's card (kind "cuda"), or of the processor."""
    return torch.cuda.get_device_name() if kind == "cuda" else _processor()


def card(kind: str) -> str:
    """Return what tells this process's card, or on a CPU its machine, from others of the same name: a short hash.

    Two runs that share one at the same time have seconds that compare with nothing.
    """
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        identity = str(getattr(properties, "uuid", None) or f"{platform.node()} {torch.cuda.current_device()}")
    else:
        identity = platform.node()
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def forget_peak_memory(kind: str) -> bool:
    """Begin to measure the peak memory anew; return whether this machine lets a process do so.

    A process's own measure, `ru_maxrss`, is the largest that it has ever been, as an earlier run or before an exec.
    """
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    gc.collect()
    with suppress(OSError, AttributeError):  # what an earlier run freed goes back to the system; glibc only
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc: the peak is what it is now
    except OSError:
        return False
    return True


def peak_memory(kind: str) -> int:
    """Return the bytes that this process has had at most since `forget_peak_memory`: on its card, else on the host."""
    if kind == "cuda":
        return torch.cuda.max_memory_allocated()
    [found] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found) * 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU: {names[0]}" if names else "CPU"
