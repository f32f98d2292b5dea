"""The layer as `torch.library` operators: torch.compile sees one node forward and one backward, without a break.

Eager calls use the same `run_forward` and `run_backward` through an autograd.Function (`linear`), which costs less.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dual_lora.kernels import tiled
from dual_lora.kernels.kept import nothing_kept
from dual_lora.kernels.rule import update_rule
from dual_lora.kernels.select import resolve_kernel

Factors = tuple[Tensor, Tensor, Tensor, Tensor]


class Call(NamedTuple):
    """What one call computes, apart from its tensors; the fields are those of the operator's schema, in order."""

    scaling: float
    ste: str
    magnitude_activation: str
    direction_activation: str
    transposed: bool
    kernel: str


def implementation(kernel: str) -> ModuleType:
    """The module behind ``fused`` or ``generic``; Triton is imported only when it is asked for."""
    if kernel != "fused":
        return tiled
    from dual_lora.kernels import fused

    return fused


def run_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    factors: Factors,
    start: Factors | None,
    call: Call,
) -> Tensor:
    """Forward of `dual_lora_linear` (with `weight`) or `dual_lora_delta_linear` (without), x of any leading shape."""
    rule = update_rule(call.ste, call.magnitude_activation, call.direction_activation)
    module = implementation(_resolve(call.kernel, x))
    flat_base = None if base is None else base.reshape(-1, base.shape[-1])
    with _without_autocast(x), _on_device(x):
        y = module.forward(
            x.reshape(-1, x.shape[-1]),
            weight,
            bias,
            factors,
            call.scaling,
            rule,
            transposed=call.transposed,
            start=start,
            base=flat_base,
        )
    return y.view(*x.shape[:-1], y.shape[-1])


def run_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    factors: Factors,
    start: Factors | None,
    call: Call,
    needs_input_grad: bool,
    needs_factor_grad: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, A, B, C, D, the last four in the factors' dtype; what is not needed is None or zero-sized."""
    rule = update_rule(call.ste, call.magnitude_activation, call.direction_activation)
    module = implementation(_resolve(call.kernel, x))
    with _without_autocast(x), _on_device(x):
        grad_x, *grads = module.backward(
            grad.reshape(-1, grad.shape[-1]),
            x.reshape(-1, x.shape[-1]),
            weight,
            factors,
            call.scaling,
            rule,
            transposed=call.transposed,
            start=start,
            needs_input_grad=needs_input_grad,
            needs_factor_grad=needs_factor_grad,
        )
    a, b, c, d = (g.to(f.dtype) for g, f in zip(grads, factors, strict=True))
    return None if grad_x is None else grad_x.view(x.shape), a, b, c, d


def bias_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the bias (out) in `dtype`, summed over the tokens in float32 (float64 for float64)."""
    return grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(dtype)


@torch.library.custom_op("dual_lora::linear", mutates_args=())
def linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    start: list[Tensor],
    scaling: Tensor,
    ste: str,
    magnitude_activation: str,
    direction_activation: str,
    transposed: bool,
    kernel: str,
) -> Tensor:
    """`dual_lora_linear` and, without `weight`, `dual_lora_delta_linear` as one operator.

    `scaling` is a float64 scalar on the CPU: reading it waits for no device, and a compiled model, which would be
    compiled anew for every other Python float, takes any.
    """
    call = Call(float(scaling), ste, magnitude_activation, direction_activation, transposed, kernel)
    with nothing_kept():
        return run_forward(x, weight, bias, base, (A, B, C, D), _factors(start), call)


@linear.register_fake
def _linear_fake(x: Tensor, weight: Any, bias: Any, base: Any, A: Tensor, B: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], B.shape[0])


@torch.library.custom_op("dual_lora::linear_backward", mutates_args=())
def linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    start: list[Tensor],
    scaling: Tensor,
    ste: str,
    magnitude_activation: str,
    direction_activation: str,
    transposed: bool,
    kernel: str,
    needs_input_grad: bool,
    needs_factor_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, A, B, C, D; what is not needed is zero-sized."""
    call = Call(float(scaling), ste, magnitude_activation, direction_activation, transposed, kernel)
    grad_x, a, b, c, d = run_backward(
        grad, x, weight, (A, B, C, D), _factors(start), call, needs_input_grad, needs_factor_grad
    )
    return (x.new_empty(0) if grad_x is None else grad_x), a, b, c, d


@linear_backward.register_fake
def _linear_backward_fake(
    grad: Tensor, x: Tensor, weight: Any, A: Tensor, B: Tensor, C: Tensor, D: Tensor, start: Any, *options: Any
) -> tuple[Tensor, ...]:
    needs_input_grad, needs_factor_grad = options[-2:]
    grad_x = x.new_empty(x.shape) if needs_input_grad else x.new_empty(0)
    return (grad_x, *(f.new_empty(f.shape if needs_factor_grad else 0) for f in (A, B, C, D)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _, A, B, C, D, start, scaling, *options = inputs
    ctx.save_for_backward(x, weight, A, B, C, D, scaling, *start)
    ctx.options = options
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, A, B, C, D, scaling, *start = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_x, *grads = linear_backward(
        grad, x, weight, A, B, C, D, start, scaling, *ctx.options, needs[0], any(needs[4:8])
    )
    factor_grads = [g if need else None for g, need in zip(grads, needs[4:8], strict=True)]
    grad_bias = bias_gradient(grad, ctx.bias_dtype) if needs[2] else None
    return (
        grad_x if needs[0] else None,
        None,
        grad_bias,
        grad if needs[3] else None,
        *factor_grads,
        [None] * len(start),
        *[None] * (1 + len(ctx.options)),
    )


linear.register_autograd(_backward, setup_context=_setup_context)


def _factors(start: list[Tensor]) -> Factors | None:
    return (start[0], start[1], start[2], start[3]) if start else None


def _resolve(kernel: str, x: Tensor) -> str:
    resolved = resolve_kernel(kernel, x.device)
    # Triton's tensor cores have no float64; the tiled path has.
    return "generic" if resolved == "fused" and x.dtype == torch.float64 and kernel == "auto" else resolved


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
