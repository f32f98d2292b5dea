"""The differentiable entry points: `delta_weight`, `dual_lora_linear`, `dual_lora_delta_linear`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dual_lora.kernels import operators, reference
from dual_lora.kernels.operators import Call
from dual_lora.kernels.rule import update_rule
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

    Shapes: `A` (r1, in), `B` (out, r1), `C` (r2, in), `D` (out, r2); `scaling` is s = w * s0. Returns (out, in) in
    float32. P = DC is formed by the same routine as in forward and backward on the same device and kernel, so its signs
    agree.
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
        return operators.implementation(kernel).delta_weight((A, B, C, D), scaling, rule, start)


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
    whose update is subtracted. Under autocast the product runs in the autocast dtype, otherwise in x's; W0 + dW is
    summed in float32 and rounded once. Nothing of size out x in is kept for backward. Returns (..., out).
    Raises ValueError as `delta_weight`. Source of the mathematics: `UpdateRule` and `reference`.
    """
    out_features, in_features = _check_factors(A, B, C, D)
    expected = (in_features, out_features) if transposed else (out_features, in_features)
    if tuple(weight.shape) != expected:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, but the factors with transposed={transposed} need {expected}"
        )
    x = _compute_input(x, in_features)
    call = Call(scaling, ste, magnitude_activation, direction_activation, transposed, kernel)
    return _run(x, weight, bias, None, (A, B, C, D), start, call)


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
    base: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """``x @ dW^T`` alone, for bases whose weight is not at hand; arguments and guarantees as in `dual_lora_linear`.

    `base` (..., out), the base layer's output, is added if given: inside the GEMM, which saves a pass over the output
    and a rounding, or, if its dtype is not the product's, afterwards and in its own dtype.
    """
    _, in_features = _check_factors(A, B, C, D)
    x = _compute_input(x, in_features)
    call = Call(scaling, ste, magnitude_activation, direction_activation, False, kernel)
    if base is not None and base.dtype != x.dtype:
        return base + _run(x, None, None, None, (A, B, C, D), start, call).to(base.dtype)
    return _run(x, None, None, base, (A, B, C, D), start, call)


def _run(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    factors: Factors,
    start: Factors | None,
    call: Call,
) -> Tensor:
    if call.kernel == "reference":
        return _reference(x, weight, bias, base, factors, start, call)
    if torch.compiler.is_compiling() or type(x) not in _PLAIN:
        # The registered operator is what tracing sees. Eager calls skip its dispatch, which costs a small layer as much
        # as its kernels.
        scaling = torch.full((), call.scaling, dtype=torch.float64, device="cpu")
        return operators.linear(x, weight, bias, base, *factors, list(start or ()), scaling, *call[1:])
    if not torch.is_grad_enabled():
        return operators.run_forward(x, weight, bias, base, factors, start, call)
    return _DualLoraLinear.apply(x, weight, bias, base, *factors, start, call)


_PLAIN = (Tensor, torch.nn.Parameter)


class _DualLoraLinear(torch.autograd.Function):
    """Saves x, the frozen weight and the factors; backward rebuilds the update tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        base: Tensor | None,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        start: Factors | None,
        call: Call,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, A, B, C, D, *(start or ()))
        ctx.call = call
        ctx.bias_dtype = None if bias is None else bias.dtype
        return operators.run_forward(x, weight, bias, base, (A, B, C, D), start, call)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B, C, D, *start = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x, *grads = operators.run_backward(
            grad, x, weight, (A, B, C, D), tuple(start) or None, ctx.call, needs[0], any(needs[4:8])
        )
        grad_bias = operators.bias_gradient(grad, ctx.bias_dtype) if needs[2] else None
        factor_grads = [g if need else None for g, need in zip(grads, needs[4:8], strict=True)]
        return (grad_x, None, grad_bias, grad if needs[3] else None, *factor_grads, None, None)


def _reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    factors: Factors,
    start: Factors | None,
    call: Call,
) -> Tensor:
    options: dict[str, Any] = {
        "magnitude_activation": call.magnitude_activation,
        "direction_activation": call.direction_activation,
        "start": start,
    }
    with torch.autocast(x.device.type, enabled=False):
        if weight is not None:
            return reference.dual_lora_linear(
                x, weight, bias, *factors, call.scaling, call.ste, transposed=call.transposed, **options
            )
        delta = reference.delta_weight(*factors, call.scaling, call.ste, **options)
        y = torch.nn.functional.linear(x, delta.to(x.dtype))
        return y if base is None else base + y


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
            f"factor shapes do not fit: A {tuple(A.shape)}, B {tuple(B.shape)}, C {tuple(C.shape)}, "
            f"D {tuple(D.shape)}; they must be (r1, in), (out, r1), (r2, in), (out, r2)"
        )
    return out_features, in_features
