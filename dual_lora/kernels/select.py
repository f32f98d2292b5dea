"""The one place that decides how a layer is computed.

Names: *fused* runs the Triton kernels, *generic* plain PyTorch in row tiles, *reference* the definition by autograd.
A layer whose weight is at hand computes ``x @ (W0 + dW)^T`` with one GEMM; a quantized or partitioned weight, dropout
on the adapter's input, or several active adapters need ``base_layer(x) + x @ dW^T``.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch

logger = logging.getLogger(__name__)

KERNELS = ("auto", "fused", "generic", "reference")
# Triton's tf32 and bf16 tensor-core instructions start with Ampere.
MINIMUM_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class KernelChoice:
    """What a layer runs.

    `kernel` goes to `dual_lora_linear` (`one_gemm`) or to `dual_lora_delta_linear` (otherwise); `reason` says why.
    """

    kernel: str
    one_gemm: bool
    reason: str

    @property
    def name(self) -> str:
        """The name for a record: kernel and number of GEMMs, e.g. ``fused`` or ``fused, separate update``."""
        return self.kernel if self.one_gemm else f"{self.kernel}, separate update"


def select_kernel(
    requested: str,
    device: torch.device | str,
    *,
    weight_is_plain: bool = True,
    dropout: float = 0.0,
    active_adapters: int = 1,
) -> KernelChoice:
    """Decide for one layer on `device`; logs each distinct decision once, a fall-back as a warning.

    Args: `weight_is_plain`: the base weight is an ordinary float tensor, present in full; `dropout`: probability on the
    adapter's input; `active_adapters`: adapters added up in this forward pass.
    Raises ValueError for an unknown name or an explicit request that cannot be met.
    """
    return _select(requested, torch.device(device).type, weight_is_plain, float(dropout), active_adapters)


def resolve_kernel(requested: str, device: torch.device) -> str:
    """The kernel a single call runs: ``fused``, ``generic`` or ``reference``. Raises as `select_kernel`."""
    return _resolve(requested, device.type, device.index if device.type == "cuda" else None)


@lru_cache(maxsize=256)
def _select(requested: str, device_type: str, plain: bool, dropout: float, active: int) -> KernelChoice:
    obstacle = _one_gemm_obstacle(plain, dropout, active)
    if requested == "fused" and obstacle:
        raise ValueError(f"kernel='fused' needs one GEMM with W0 + dW, but {obstacle}; use kernel='auto' or 'generic'")
    kernel = _resolve(requested, device_type, None)
    reason = "requested"
    if requested == "auto":
        reason = f"auto on {device_type}" + (f": {obstacle}" if obstacle else "")
    choice = KernelChoice(kernel, one_gemm=not obstacle and requested != "generic", reason=reason)
    logger.info("Dual LoRA layers run the kernel %s (%s)", choice.name, reason)
    return choice


def _one_gemm_obstacle(plain: bool, dropout: float, active: int) -> str:
    if not plain:
        return "the base weight is quantized or partitioned"
    if dropout > 0:
        return f"dropout {dropout} acts on the adapter's input only"
    if active > 1:
        return f"{active} adapters are active at once"
    return ""


@lru_cache(maxsize=64)
def _resolve(requested: str, device_type: str, index: int | None) -> str:
    if requested not in KERNELS:
        raise ValueError(f"kernel={requested!r} is not known; use one of {', '.join(map(repr, KERNELS))}")
    if requested in ("generic", "reference"):
        return requested
    obstacle = _fused_obstacle(device_type, index)
    if requested == "fused":
        if obstacle:
            raise ValueError(f"kernel='fused' cannot run: {obstacle}; use kernel='auto' or kernel='generic'")
        return "fused"
    if not obstacle and device_type == "cuda":
        return "fused"
    if device_type == "cuda":
        logger.warning("Dual LoRA falls back from the fused to the generic kernel, which is slower: %s", obstacle)
    return "generic"


def _fused_obstacle(device_type: str, index: int | None) -> str:
    """Why Triton cannot run here, or an empty string."""
    if find_spec("triton") is None:
        return "the package triton is not installed (it comes with PyTorch's CUDA builds)"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if device_type != "cuda":
        return f"the Triton kernels need a CUDA device, and the tensors are on {device_type!r}"
    capability = torch.cuda.get_device_capability(index)
    if capability < MINIMUM_CAPABILITY:
        return f"compute capability {capability} is below {MINIMUM_CAPABILITY}"
    return ""
