"""The differentiable entry points: `delta_weight`, `dual_lora_linear`, `dual_lora_delta_linear`.

The tuner, which makes its `Update` itself, calls `form_update` and `apply_update` below them.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dual_lora.kernels import dispatch, operators, reference
from dual_lora.kernels.spec import Factors, Options, Update, update_spec


def delta_weight(
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    scaling: float,
    *,
    start: Factors | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """The update dW as it enters `dual_lora_linear`, for merging; not differentiable.

    Shapes: `A` (r1, in), `B` (out, r1), `C` (r2, in), `D` (out, r2); `scaling` is s = w * s0. `start` holds frozen
    factors (A0, B0, C0, D0) whose update is subtracted. `options`: magnitude_activation, direction_activation, kernel;
    see `UpdateSpec`. Returns (out, in) in float32. P = DC is formed by the same routine as in forward and backward on
    the same device and kernel, so its signs agree.
    Raises ValueError for shapes that do not fit, unknown options, or a kernel that cannot run here.
    """
    return form_update(Update((A, B, C, D), start, scaling, update_spec(**options)))


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
    transposed: bool = False,
    start: Factors | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """``x @ (W0 + dW)^T + bias`` with one GEMM; differentiable in x, bias, A, B, C, D, not in the frozen weight.

    Shapes: `x` (..., in), contiguous or not, possibly empty; `weight` (out, in), or (in, out) if `transposed` (GPT-2's
    Conv1D); `bias` (out); factors, usually float32, `start` and `options` as in `delta_weight`. Under autocast the
    product runs in the autocast dtype, otherwise in x's; W0 + dW is summed in float32 and rounded once. Nothing of size
    out x in is kept for backward. Returns (..., out).
    Raises ValueError as `delta_weight`. Source of the mathematics: `UpdateSpec` and `reference`.
    """
    spec = update_spec(ste, transposed=transposed, **options)
    return apply_update(x, weight, bias, Update((A, B, C, D), start, scaling, spec))


def dual_lora_delta_linear(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    scaling: float,
    ste: str = "clipped_gradient",
    *,
    start: Factors | None = None,
    base: Tensor | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """``x @ dW^T`` alone, for bases whose weight is not available; arguments and guarantees as in `dual_lora_linear`.

    `base` (..., out), the base layer's output, is added if given: inside the GEMM, which saves a pass over the output
    and a rounding, or, if its dtype is not the product's, afterwards and in its own dtype.
    """
    return apply_update(x, None, None, Update((A, B, C, D), start, scaling, update_spec(ste, **options)), base)


@torch.no_grad()
def form_update(update: Update) -> Tensor:
    """`delta_weight` of an `Update`."""
    _check_factors(*update.factors)
    if dispatch.resolve_kernel(update.spec.kernel, update.factors[0].device) == "reference":
        return reference.form_update(update)
    return dispatch.delta_weight(update)


def apply_update(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, update: Update, base: Tensor | None = None
) -> Tensor:
    """`dual_lora_linear`, and without `weight` `dual_lora_delta_linear`, of an `Update`."""
    out_features, in_features = _check_factors(*update.factors)
    if weight is not None:
        transposed = update.spec.transposed
        expected = (in_features, out_features) if transposed else (out_features, in_features)
        if tuple(weight.shape) != expected:
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}, but the factors with transposed={transposed} need {expected}"
            )
    x = _compute_input(x, in_features)
    if base is not None and base.dtype != x.dtype:
        return base + apply_update(x, weight, bias, update).to(base.dtype)
    traced = _is_traced(x)
    # Plain operations are what vmap, grad and other transforms of torch.func can take apart.
    if update.spec.kernel == "reference" or (not traced and torch._C._are_functorch_transforms_active()):
        with torch.autocast(x.device.type, enabled=False):
            return reference.apply_update(x, weight, bias, update, base)
    if traced:
        # The registered operator is what tracing sees. Eager calls skip its dispatch, which costs a small layer as much
        # as its kernels.
        return operators.apply_update(x, weight, bias, update, base)
    if not torch.is_grad_enabled():
        return dispatch.forward(x, weight, bias, update, base)
    return _DualLoraLinear.apply(x, weight, bias, base, update, *update.factors)


def apply_update_with_dropout(x: Tensor, weight: Tensor, bias: Tensor | None, update: Update, p: float) -> Tensor:
    """``x @ W0^T + bias + dropout(x, p) @ dW^T``: `dual_lora_linear` of a training with dropout on the adapter's input.

    Draws what ``torch.nn.functional.dropout(x, p)`` draws. One call where all numbers are of one dtype and nothing
    traces it; else the product with W0 and that with dW, each differentiable on its own.
    """
    oriented = weight.t() if update.spec.transposed else weight
    dtypes = {x.dtype, weight.dtype, _compute_dtype(x), x.dtype if bias is None else bias.dtype}
    separate = _is_traced(x) or update.spec.kernel == "reference" or torch._C._are_functorch_transforms_active()
    if separate or len(dtypes) > 1:
        return apply_update(F.dropout(x, p), None, None, update, F.linear(x, oriented, bias))
    _check_factors(*update.factors)
    return _DualLoraLinearWithDropout.apply(x, oriented, bias, p, update, *update.factors)


def _is_traced(x: Tensor) -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) not in _PLAIN


_PLAIN = (Tensor, torch.nn.Parameter)


class _DualLoraLinear(torch.autograd.Function):
    """Saves x, the frozen weight and the factors; backward rebuilds the update tile by tile, unless it was kept.

    `factors` are those of `update` once more: autograd sees only tensors that are arguments themselves.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        base: Tensor | None,
        update: Update,
        *factors: Tensor,
    ) -> Tensor:
        kept = dispatch.keep(x, weight, update) if update.keeps_weight else ()
        _save(ctx, (x, weight), factors, update, kept, bias)
        return dispatch.forward(x, weight, bias, update, base, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), update, kept = _saved(ctx)
        needs = ctx.needs_input_grad
        grad_x, *grads = dispatch.backward(
            grad, x, weight, update, kept, needs_input_grad=needs[0], needs_factor_grad=any(needs[5:])
        )
        grad_bias, *factor_grads = _needed(ctx, grad, grads)
        return (grad_x, None, grad_bias, grad if needs[3] else None, None, *factor_grads)


class _DualLoraLinearWithDropout(torch.autograd.Function):
    """Saves the dropped input and its mask instead of x.

    The GEMM with W0 adds its result to that with dW, forward and backward, so neither sum is a pass of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, p: float, update: Update, *factors: Tensor
    ) -> Tensor:
        dropped, mask = torch.native_dropout(x, p, True)
        kept = dispatch.keep(dropped, None, update) if update.keeps_weight else ()
        _save(ctx, (dropped, mask, weight), factors, update, kept, bias)
        ctx.scale = 1 / (1 - p)
        y = dispatch.forward(dropped, None, bias, update, kept=kept)
        _rows(y).addmm_(_rows(x), weight.t())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (dropped, mask, weight), update, kept = _saved(ctx)
        needs = ctx.needs_input_grad
        grad_x, *grads = dispatch.backward(
            grad, dropped, None, update, kept, needs_input_grad=needs[0], needs_factor_grad=any(needs[5:])
        )
        if grad_x is not None:
            masked = torch.ops.aten.native_dropout_backward(_rows(grad_x), _rows(mask), ctx.scale)
            grad_x = masked.addmm_(_rows(grad), weight).reshape(dropped.shape)
        grad_bias, *factor_grads = _needed(ctx, grad, grads)
        return (grad_x, None, grad_bias, None, None, *factor_grads)


def _save(
    ctx: Any,
    tensors: tuple[Tensor | None, ...],
    factors: tuple[Tensor, ...],
    update: Update,
    kept: tuple[Tensor, ...],
    bias: Tensor | None,
) -> None:
    ctx.save_for_backward(*tensors, *factors, *kept, *(update.start or ()))
    ctx.sizes, ctx.rest = (len(tensors), len(kept)), update[2:]
    ctx.bias_dtype = None if bias is None else bias.dtype


def _saved(ctx: Any) -> tuple[tuple[Any, ...], Update, tuple[Tensor, ...]]:
    """The tensors, the update and what was kept, as `_save` got them."""
    saved, (tensors, kept) = ctx.saved_tensors, ctx.sizes
    a, b, c, d, *others = saved[tensors:]
    update = Update((a, b, c, d), tuple(others[kept:]) or None, *ctx.rest)
    return saved[:tensors], update, tuple(others[:kept])


def _needed(ctx: Any, grad: Tensor, grads: list[Tensor]) -> list[Tensor | None]:
    """The gradients of the bias and of the factors that are needed; the others None."""
    needs = ctx.needs_input_grad
    bias = operators.bias_gradient(grad, ctx.bias_dtype) if needs[2] else None
    return [bias, *(g if need else None for g, need in zip(grads, needs[5:], strict=True))]


def _rows(x: Tensor) -> Tensor:
    """x (..., n) as (tokens, n)."""
    return x.reshape(-1, x.shape[-1])


def _compute_input(x: Tensor, in_features: int) -> Tensor:
    """x in the dtype the product runs in."""
    if x.shape[-1] != in_features:
        raise ValueError(f"x has {x.shape[-1]} input features, but the factors A and C have {in_features}")
    return x.to(_compute_dtype(x))


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype the product runs in: autocast's if it is on, else x's own."""
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return x.dtype


def _check_factors(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[int, int]:
    """(out, in) of the update, after checking that the four shapes fit together."""
    out_features, in_features = B.shape[0], A.shape[1]
    if B.shape[1] != A.shape[0] or D.shape[1] != C.shape[0] or D.shape[0] != out_features or C.shape[1] != in_features:
        raise ValueError(
            f"factor shapes do not fit: A {tuple(A.shape)}, B {tuple(B.shape)}, C {tuple(C.shape)}, "
            f"D {tuple(D.shape)}; they must be (r1, in), (out, r1), (r2, in), (out, r2)"
        )
    return out_features, in_features
