"""The layer as `torch.library` operators: torch.compile sees one node forward and one backward, without a break.

A schema holds tensors, numbers and strings, so an `Update` is taken apart here and rebuilt inside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dual_lora.kernels import dispatch, factor_cache
from dual_lora.kernels.spec import Factors, Update, update_spec


def apply_update(x: Tensor, weight: Tensor | None, bias: Tensor | None, update: Update, base: Tensor | None) -> Tensor:
    """`dual_lora.kernels.linear.apply_update` by the operator."""
    factors, start, scaling, spec = update[:4]
    # As products: tracing by autograd, a part of compiling, leaves a number open only as a factor of a tensor.
    one = torch.ones((), dtype=torch.float64, device="cpu")
    numbers = [one * value for value in (scaling, update.loss_scale)]
    options = (spec.ste, spec.magnitude_activation, spec.direction_activation, spec.transposed, spec.kernel)
    return linear(x, weight, bias, base, *factors, list(start or ()), *numbers, *options)


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
    loss_scale: Tensor,
    ste: str,
    magnitude_activation: str,
    direction_activation: str,
    transposed: bool,
    kernel: str,
) -> Tensor:
    """`dual_lora_linear` and, without `weight`, `dual_lora_delta_linear` as one operator.

    `scaling` and `loss_scale` are float64 scalars on the CPU: reading them waits for no device, and a compiled model
    accepts any value, while it would be compiled again for every other Python float.
    """
    options = (ste, magnitude_activation, direction_activation, transposed, kernel)
    with factor_cache.disabled():
        return dispatch.forward(x, weight, bias, _update((A, B, C, D), start, scaling, loss_scale, *options), base)


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
    loss_scale: Tensor,
    ste: str,
    magnitude_activation: str,
    direction_activation: str,
    transposed: bool,
    kernel: str,
    needs_input_grad: bool,
    needs_factor_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, A, B, C, D; what is not needed is zero-sized."""
    options = (ste, magnitude_activation, direction_activation, transposed, kernel)
    update = _update((A, B, C, D), start, scaling, loss_scale, *options)
    grad_x, a, b, c, d = dispatch.backward(
        grad, x, weight, update, needs_input_grad=needs_input_grad, needs_factor_grad=needs_factor_grad
    )
    return (x.new_empty(0) if grad_x is None else grad_x), a, b, c, d


@linear_backward.register_fake
def _linear_backward_fake(grad: Tensor, x: Tensor, weight: Any, *others: Any) -> tuple[Tensor, ...]:
    factors, (needs_input_grad, needs_factor_grad) = others[:4], others[-2:]
    grad_x = x.new_empty(x.shape) if needs_input_grad else x.new_empty(0)
    return (grad_x, *(f.new_empty(f.shape if needs_factor_grad else 0) for f in factors))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _, A, B, C, D, start, scaling, loss_scale, *options = inputs
    ctx.save_for_backward(x, weight, A, B, C, D, scaling, loss_scale, *start)
    ctx.options = options
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, A, B, C, D, scaling, loss_scale, *start = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_x, *grads = linear_backward(
        grad, x, weight, A, B, C, D, start, scaling, loss_scale, *ctx.options, needs[0], any(needs[4:8])
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
        *[None] * (2 + len(ctx.options)),
    )


linear.register_autograd(_backward, setup_context=_setup_context)


def _update(factors: Factors, start: list[Tensor], scaling: Tensor, loss_scale: Tensor, *spec: Any) -> Update:
    frozen = (start[0], start[1], start[2], start[3]) if start else None
    return Update(factors, frozen, float(scaling), update_spec(*spec), loss_scale=float(loss_scale))
