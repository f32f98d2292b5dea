"""The differentiable entry points: `delta_weight`, `dual_lora_linear`, `dual_lora_delta_linear`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dual_lora.kernels import reference, tiled
from dual_lora.kernels.rule import UpdateRule, update_rule
from dual_lora.kernels.select import resolve_kernel

Factors = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.no_grad()
def delta_weight(
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    scaling: float,
    *,
    magnitude_activation: str = "relu",
    direction_activation: str = "sign",
    start: Factors | None = None,
    kernel: str = "auto",
) -> Tensor:
    """The update dW as it enters `dual_lora_linear`, for merging; not differentiable.

    Shapes: `A` (r1, in), `B` (out, r1), `C` (r2, in), `D` (out, r2); `scaling` is s = w * s0. Returns (out, in) in float32.
    P = DC is formed by the same routine as in forward and backward on the same device and kernel, so its signs agree.
    Raises ValueError for shapes that do not fit, unknown options, or a kernel that cannot run here.
    """
    rule = update_rule("clipped_gradient", magnitude_activation, direction_activation)
    _check_factors(A, B, C, D)
    kernel = resolve_kernel(kernel, A.device)
    if kernel == "reference":
        return reference.delta_weight(
            A,
            B,
            C,
            D,
            scaling,
            magnitude_activation=magnitude_activation,
            direction_activation=direction_activation,
            start=start,
        )
    with torch.autocast(A.device.type, enabled=False):
        return tiled.delta_weight((A, B, C, D), scaling, rule, start)


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
    kernel: str = "auto",
) -> Tensor:
    """``x @ (W0 + dW)^T + bias`` with one GEMM; differentiable in x, bias, A, B, C, D, not in the frozen weight.

    Shapes: `x` (..., in), contiguous or not, possibly empty; `weight` (out, in), or (in, out) if `transposed` (GPT-2's
    Conv1D); `bias` (out); factors as in `delta_weight`, usually float32. `start` holds frozen factors (A0, B0, C0, D0)
    whose update is subtracted. Under autocast the product runs in the autocast dtype, otherwise in x's; W0 + dW is summed
    in float32 and rounded once. Nothing of size out x in is kept for backward. Returns (..., out).
    Raises ValueError as `delta_weight`. Source of the mathematics: `UpdateRule` and `reference`.
    """
    rule = update_rule(ste, magnitude_activation, direction_activation)
    out_features, in_features = _check_factors(A, B, C, D)
    expected = (in_features, out_features) if transposed else (out_features, in_features)
    if tuple(weight.shape) != expected:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, but the factors with transposed={transposed} need {expected}"
        )
    x = _compute_input(x, in_features)
    kernel = resolve_kernel(kernel, x.device)
    if kernel == "reference":
        with torch.autocast(x.device.type, enabled=False):
            return reference.dual_lora_linear(
                x,
                weight,
                bias,
                A,
                B,
                C,
                D,
                scaling,
                ste,
                magnitude_activation=magnitude_activation,
                direction_activation=direction_activation,
                transposed=transposed,
                start=start,
            )
    return _DualLoraLinear.apply(x, weight, bias, A, B, C, D, start, scaling, rule, transposed)


def dual_lora_delta_linear(
    x: Tensor,
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
    kernel: str = "auto",
) -> Tensor:
    """``x @ dW^T`` alone, for bases whose weight is not at hand; arguments and guarantees as in `dual_lora_linear`."""
    rule = update_rule(ste, magnitude_activation, direction_activation)
    _, in_features = _check_factors(A, B, C, D)
    x = _compute_input(x, in_features)
    kernel = resolve_kernel(kernel, x.device)
    if kernel == "reference":
        with torch.autocast(x.device.type, enabled=False):
            delta = reference.delta_weight(
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
            return torch.nn.functional.linear(x, delta.to(x.dtype))
    return _DualLoraLinear.apply(x, None, None, A, B, C, D, start, scaling, rule, False)


class _DualLoraLinear(torch.autograd.Function):
    """Saves x, the frozen weight and the factors; backward rebuilds the update tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        start: Factors | None,
        scaling: float,
        rule: UpdateRule,
        transposed: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, A, B, C, D, *(start or ()))
        ctx.scaling, ctx.rule, ctx.transposed = scaling, rule, transposed
        ctx.bias_dtype = None if bias is None else bias.dtype
        flat = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            y = tiled.forward(flat, weight, bias, (A, B, C, D), scaling, rule, transposed=transposed, start=start)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B, C, D, *start = ctx.saved_tensors
        needs = ctx.needs_input_grad
        flat_grad = grad.reshape(-1, grad.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            grad_x, *grads = tiled.backward(
                flat_grad,
                x.reshape(-1, x.shape[-1]),
                weight,
                (A, B, C, D),
                ctx.scaling,
                ctx.rule,
                transposed=ctx.transposed,
                start=tuple(start) or None,
                needs_input_grad=needs[0],
                needs_factor_grad=any(needs[3:7]),
            )
        grad_bias = tiled.bias_gradient(flat_grad, ctx.bias_dtype) if needs[2] else None
        grad_factors = [
            g.to(f.dtype) if need else None for g, f, need in zip(grads, (A, B, C, D), needs[3:7], strict=True)
        ]
        return (
            None if grad_x is None else grad_x.view(x.shape),
            None,
            grad_bias,
            *grad_factors,
            None,
            None,
            None,
            None,
        )


def _compute_input(x: Tensor, in_features: int) -> Tensor:
    """x in the dtype the product runs in: autocast's if it is on, else its own."""
    if x.shape[-1] != in_features:
        raise ValueError(f"x has {x.shape[-1]} input features, but the factors A and C have {in_features}")
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device_type))
    return x


def _check_factors(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[int, int]:
    """(out, in) of the update, after checking that the four shapes fit together."""
    out_features, in_features = B.shape[0], A.shape[1]
    if B.shape[1] != A.shape[0] or D.shape[1] != C.shape[0] or D.shape[0] != out_features or C.shape[1] != in_features:
        raise ValueError(
            f"factor shapes do not fit: A {tuple(A.shape)}, B {tuple(B.shape)}, C {tuple(C.shape)}, D {tuple(D.shape)}; "
            "they must be (r1, in), (out, r1), (r2, in), (out, r2)"
        )
    return out_features, in_features
