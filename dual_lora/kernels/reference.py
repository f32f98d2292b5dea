"""Dual LoRA in plain PyTorch: the definition that every other path is tested against.

It keeps several out x in tensors for backward, so it is for small layers and for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dual_lora.kernels.rule import UpdateRule

Factors = tuple[Tensor, Tensor, Tensor, Tensor]


class _StraightThroughSign(torch.autograd.Function):
    """Sign with Sign(0) = -1; its gradient is one of the straight-through estimators of `UpdateRule`."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, ste: str) -> Tensor:
        ctx.ste = ste
        ctx.save_for_backward(p)
        return torch.where(p > 0, 1.0, -1.0).to(p.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        if ctx.ste == "clipped_gradient":
            return grad.clamp(-1, 1), None
        if ctx.ste == "hard_tanh":
            return grad * (p.abs() <= 1), None
        return grad, None


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
    rule = UpdateRule(ste, magnitude_activation, direction_activation)
    with torch.autocast(A.device.type, enabled=False):
        delta = _update(A, B, C, D, rule)
        if start is not None:
            delta = delta - _update(*start, rule).detach()
        return scaling * delta


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
    delta = delta_weight(
        A,
        B,
        C,
        D,
        scaling,
        ste,
        magnitude_activation=magnitude_activation,
        direction_activation=direction_activation,
        start=start,
    )
    base = weight.t() if transposed else weight
    # One rounding, of the sum: the same as the tiled and the fused path do.
    effective = (base.detach().to(delta.dtype) + delta).to(x.dtype)
    return F.linear(x, effective, None if bias is None else bias.to(x.dtype))


def _update(A: Tensor, B: Tensor, C: Tensor, D: Tensor, rule: UpdateRule) -> Tensor:
    A, B, C, D = (f if f.dtype == torch.float64 else f.float() for f in (A, B, C, D))
    m, p = B @ A, D @ C
    u = torch.relu(m) if rule.magnitude_activation == "relu" else m
    v = _StraightThroughSign.apply(p, rule.ste) if rule.direction_activation == "sign" else p
    return u * v
