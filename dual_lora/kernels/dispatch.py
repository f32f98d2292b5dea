"""The one place that decides how a layer is computed, and the calls of the chosen path.

Names: *fused* runs the Triton kernels, *generic* plain PyTorch in row tiles, *reference* the definition by autograd.
A layer whose weight is available in full computes ``x @ (W0 + dW)^T`` with one GEMM, and with dropout on the adapter's
input two GEMMs, one on top of the other; a quantized or partitioned weight, or several active adapters, need
``base_layer(x) + x @ dW^T``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dual_lora.kernels import beside, tiled
from dual_lora.kernels.beside import Branch
from dual_lora.kernels.spec import Gradients, Update

logger = logging.getLogger(__name__)

KERNELS = ("auto", "fused", "generic", "reference")
# Triton's tf32 and bf16 tensor-core instructions start with Ampere.
MINIMUM_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class KernelChoice:
    """What a layer runs: `kernel` with one GEMM, or on top of the base layer's product; `reason` says why.

    reads_weight: the base weight is an ordinary tensor and there is one update, so that one call computes the layer.
    """

    kernel: str
    one_gemm: bool
    reason: str
    reads_weight: bool

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
    return _uncached(_select)(requested, torch.device(device).type, weight_is_plain, float(dropout), active_adapters)


def resolve_kernel(requested: str, device: torch.device) -> str:
    """The kernel a single call runs: ``fused``, ``generic`` or ``reference``. Raises as `select_kernel`."""
    return _uncached(_resolve)(requested, device.type, device.index if device.type == "cuda" else None)


def _uncached(function: Any) -> Any:
    # The compiler looks through a cache, and warns of each that it meets.
    return function.__wrapped__ if torch.compiler.is_compiling() else function


@lru_cache(maxsize=256)
def _select(requested: str, device_type: str, plain: bool, dropout: float, active: int) -> KernelChoice:
    obstacle = _one_gemm_obstacle(plain, dropout, active)
    if requested == "fused" and obstacle:
        raise ValueError(f"kernel='fused' needs one GEMM with W0 + dW, but {obstacle}; use kernel='auto' or 'generic'")
    kernel = _uncached(_resolve)(requested, device_type, None)
    reason = "requested"
    if requested == "auto":
        reason = f"auto on {device_type}" + (f": {obstacle}" if obstacle else "")
    one_gemm = not obstacle and requested != "generic"
    choice = KernelChoice(kernel, one_gemm, reason, reads_weight=plain and active == 1)
    if not torch.compiler.is_compiling():  # a line of the log would cut the graph in two
        logger.info("Dual LoRA layers run the kernel %s (%s)", choice.name, reason)
    return choice


def _one_gemm_obstacle(plain: bool, dropout: float, active: int) -> str:
    if not plain:
        return "the base weight is quantized, partitioned, hooked or trained"
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
    if device_type == "cuda" and not torch.compiler.is_compiling():
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


def delta_weight(update: Update) -> Tensor:
    """dW as (out, in) in float32 by the generic or the fused kernel; P is formed as in `forward` and `backward`."""
    a = update.factors[0]
    with _without_autocast(a), _on_device(a):
        result: Tensor = _implementation(update.spec.kernel, a).delta_weight(update)
        return result


def keep(x: Tensor, weight: Tensor | None, update: Update) -> tuple[Tensor, ...]:
    """W0 + dW (or dW) as `forward` and `backward` of the fused kernels make it for `x`, to be given to both.

    The packed factors, if any, go with it. Nothing where they would make none: another kernel, few tokens, or a weight
    whose columns are contiguous (Conv1D), which backward would read in another layout and so with other last digits.
    """
    oriented = weight.t() if weight is not None and update.spec.transposed else weight
    if not _keeps(oriented, update, x):
        return ()
    with _without_autocast(x), _on_device(x):
        kept: tuple[Tensor, ...] = _fused().keep(x.reshape(-1, x.shape[-1]), oriented, update, beside.branch())
        return kept


def keep_ahead(parts: Iterable[tuple[Tensor | None, Update]], dtype: torch.dtype, branch: Branch) -> None:
    """Form on `branch` what `keep` would for an x of `dtype` and each large weight and its update, on one device."""
    oriented = [(w.t() if w is not None and u.spec.transposed else w, u) for w, u in parts]
    _fused().keep_ahead([part for part in oriented if _keeps(*part, part[1].factors[0])], dtype, branch)


def _keeps(oriented: Tensor | None, update: Update, x: Tensor) -> bool:
    by_columns = oriented is not None and oriented.stride(0) < oriented.stride(1)
    return not by_columns and _implementation(update.spec.kernel, x) is not tiled


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    update: Update,
    base: Tensor | None = None,
    kept: tuple[Tensor, ...] = (),
) -> Tensor:
    """``x @ (W0 + dW)^T + bias``, or ``x @ dW^T`` + `base` or `bias` without `weight`; x of any leading shape.

    `kept`: what `keep` returned.
    """
    flat_base = None if base is None else base.reshape(-1, base.shape[-1])
    with _without_autocast(x), _on_device(x):
        oriented = weight.t() if weight is not None and update.spec.transposed else weight
        flat_x = x.reshape(-1, x.shape[-1])
        if kept:
            y = _fused().product(flat_x, kept[0], bias, flat_base)
        else:
            y = _implementation(update.spec.kernel, x).forward(flat_x, oriented, bias, update, flat_base)
    return y.view(*x.shape[:-1], y.shape[-1])


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    update: Update,
    kept: tuple[Tensor, ...] = (),
    *,
    needs_input_grad: bool,
    needs_factor_grad: bool,
) -> Gradients:
    """Gradients of x, A, B, C, D, the last four in the factors' dtype; what is not needed is None or zero-sized."""
    options: dict[str, Any] = {"kept": kept} if kept else {}
    if len(kept) > 1 and all(_takes_as_it_is(factor) for factor in update.factors):
        options["branch"] = beside.branch()
    with _without_autocast(x), _on_device(x):
        grad_x, *grads = _implementation(update.spec.kernel, x).backward(
            grad.reshape(-1, grad.shape[-1]),
            x.reshape(-1, x.shape[-1]),
            weight.t() if weight is not None and update.spec.transposed else weight,
            update,
            needs_input_grad=needs_input_grad,
            needs_factor_grad=needs_factor_grad,
            **options,
        )
    a, b, c, d = (g.to(f.dtype) for g, f in zip(grads, update.factors, strict=True))
    return None if grad_x is None else grad_x.view(x.shape), a, b, c, d


def _takes_as_it_is(factor: Tensor) -> bool:
    """Whether the float32 gradient of a factor is the factor's `grad` itself, which nothing has read by then."""
    return factor.is_leaf and factor.dtype == torch.float32 and factor.grad is None and not factor._backward_hooks


def _implementation(requested: str, x: Tensor) -> ModuleType:
    """The module that computes a call with input `x`."""
    kernel = resolve_kernel(requested, x.device)
    # Triton's tensor cores have no float64; the tiled path has.
    fused = kernel == "fused" and not (x.dtype == torch.float64 and requested == "auto")
    return _fused() if fused else tiled


@cache
def _fused() -> ModuleType:
    """Triton is imported only when it is needed."""
    from dual_lora.kernels import fused

    return fused


_NO_CONTEXT = nullcontext()


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """P must be formed in float32 whatever the caller's autocast says."""
    device_type = x.device.type
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else _NO_CONTEXT


def _on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors' own."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return _NO_CONTEXT
