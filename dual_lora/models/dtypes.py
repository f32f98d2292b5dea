"""The dtype in which a base model is held."""

from __future__ import annotations

from pathlib import Path

from dual_lora.config import ModelConfig

# x86 flags of instructions that multiply bfloat16; with AVX2 alone, PyTorch converts and is slower than in float32
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def resolve_dtype(model: ModelConfig, device: object = "cpu") -> str:
    """Return "float32" or "bfloat16": what `model.dtype` says, and for "auto" what the device computes in.

    auto: bfloat16 on GPUs and on CPUs with bfloat16 instructions, else float32. The result is part of a run's identity,
    so it depends on nothing else. `device`: a name or `torch.device`. Does not import torch.
    """
    if model.dtype != "auto":
        return model.dtype
    if not str(device).startswith("cpu"):
        return "bfloat16"
    return "bfloat16" if cpu_computes_bfloat16() else "float32"


def cpu_computes_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU has bfloat16 arithmetic (Linux; elsewhere False: correct, maybe slower)."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(_BFLOAT16_FLAGS & set(line.split()) for line in lines if line.startswith("flags"))
