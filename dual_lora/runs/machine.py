"""What a run used of its machine, for the record's `execution`."""

from __future__ import annotations

import hashlib
import platform
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU: {names[0]}" if names else "CPU"
