"""Dual LoRA in plain PyTorch: the definition that every other path is tested against.

It keeps several out x in tensors for backward, so it is for small layers and for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dual_lora.kernels.spec import Factors, Update, UpdateSpec

_TINY = 1e-30  # keeps the root mean square of zeros from dividing by zero


class _StraightThroughSign(torch.autograd.Function):
    """Sign with Sign(0) = -1; its gradient is one of the straight-through estimators of `UpdateSpec`.

    Written so that torch.func's vmap, grad and their like go through.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, ste: str, loss_scale: float) -> Tensor:
        return torch.where(p > 0, 1.0, -1.0).to(p.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str, float], output: Tensor) -> None:
        p, ctx.ste, ctx.loss_scale = inputs
        ctx.save_for_backward(p)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (p,) = ctx.saved_tensors
        if ctx.ste == "clipped_gradient":
            return grad.clamp(-ctx.loss_scale, ctx.loss_scale), None, None
        if ctx.ste == "hard_tanh":
            return grad * (p.abs() <= 1), None, None
        return grad, None, None


def delta_weight(
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    scaling: float,
    ste: str = "clipped_gradient",
    *,
    magnitude_activation: str = "relu",
    direction_activation: str = "sign",
    start: Factors | None = None,
) -> Tensor:
    """The update s * U(BA) * V(DC), differentiable.

    Args: `A` (r1, in), `B` (out, r1): magnitude group; `C` (r2, in), `D` (out, r2): direction group; `scaling`
    s = w * s0; `start`: frozen (A0, B0, C0, D0) whose update is subtracted.
    Returns (out, in) in float32, or in float64 for float64 factors. Raises ValueError for an unknown option.
    Source: Dual LoRA, method section; Sign(0) = -1 and the clip on the incoming gradient likewise.
    """
    spec = UpdateSpec(ste, magnitude_activation, direction_activation)
    return form_update(Update((A, B, C, D), start, scaling, spec))


def dual_lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    scaling: float,
    ste: str = "clipped_gradient",
    *,
    magnitude_activation: str = "relu",
    direction_activation: str = "sign",
    transposed: bool = False,
    start: Factors | None = None,
) -> Tensor:
    """``x @ (W0 + dW)^T + bias`` by automatic differentiation; arguments as in `dual_lora.kernels.dual_lora_linear`."""
    spec = UpdateSpec(ste, magnitude_activation, direction_activation, transposed)
    return apply_update(x, weight, bias, Update((A, B, C, D), start, scaling, spec))


def form_update(update: Update) -> Tensor:
    """`delta_weight` of an `Update`."""
    with torch.autocast(update.factors[0].device.type, enabled=False):
        delta = _product(update.factors, update)
        if update.start is not None:
            delta = delta - _product(update.start, update).detach()
        if update.row_scale is not None:
            unit = torch.rsqrt(delta.square().mean(dim=1, keepdim=True) + _TINY)
            delta = update.spec.normalised * update.row_scale.to(delta.dtype) * unit * delta
        return (update.scaling if update.in_memory is None else update.in_memory[0]) * delta


def apply_update(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, update: Update, base: Tensor | None = None
) -> Tensor:
    """`dual_lora_linear` of an `Update`; without `weight`, the update's part alone, added to `base`."""
    delta = form_update(update)
    if weight is None:
        y = F.linear(x, delta.to(x.dtype))
        return y if base is None else base + y
    oriented = weight.t() if update.spec.transposed else weight
    # One rounding, of the sum: the same as the tiled and the fused path do.
    effective = (oriented.detach().to(delta.dtype) + delta).to(x.dtype)
    return F.linear(x, effective, None if bias is None else bias.to(x.dtype))


def _product(factors: Factors, update: Update) -> Tensor:
    """U(BA) * V(DC)."""
    A, B, C, D = (f if f.dtype == torch.float64 else f.float() for f in factors)
    m, p = B @ A, D @ C
    magnitude = update.spec.magnitude_activation
    u = torch.relu(m) if magnitude == "relu" else m if magnitude == "identity" else m * (m >= 0)
    return u * _direction(p, update)


def _direction(p: Tensor, update: Update) -> Tensor:
    """V(P)."""
    spec, temperature = update.spec, update.temperature
    if spec.direction_activation == "identity":
        return p
    if spec.direction_activation == "annealed_sign" and temperature is not None:
        return torch.tanh(p / (temperature * p.detach().square().mean().add(_TINY).sqrt()))
    return _StraightThroughSign.apply(p, spec.ste, update.loss_scale)
