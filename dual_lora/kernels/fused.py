"""Forward and backward of one layer with the Triton kernels and cuBLAS; the same functions as in `tiled`.

Forward: build W0 + dW into a transient buffer, one GEMM; a few tokens take one kernel instead, which never writes
W0 + dW. Backward: G = dY^T X by GEMM, one pass over G that reduces it to the factor gradients and, in place, turns it
into W0 + dW, then dX = dY (W0 + dW) by GEMM. One buffer of out x in exists during a call, none after it; in addition,
backward holds the reduction's partial sums (`plans.Reduction`) and, above rank 32, Gp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from dual_lora.kernels import plans, tiles
from dual_lora.kernels.beside import Ahead, Branch
from dual_lora.kernels.packing import Operands, contiguous, is_packed, packed_factors, prepare
from dual_lora.kernels.plans import Geometry, Launch
from dual_lora.kernels.spec import Factors, Gradients, Update, limit


def delta_weight(update: Update) -> Tensor:
    """The update as (out, in) float32."""
    a, b, _, _ = update.factors
    out = torch.empty(b.shape[0], a.shape[1], dtype=torch.float32, device=a.device)
    build(None, out, prepare(update))
    return out


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, update: Update, base: Tensor | None = None
) -> Tensor:
    """``x @ (W0 + dW)^T + bias`` for x of shape (tokens, in) and `weight` (out, in) of any strides.

    Without `weight`, the update's part alone, added to `base` (tokens, out).
    """
    if x.shape[0] == 0:
        return x.new_empty(0, update.factors[1].shape[0])
    operands = prepare(update)
    if x.shape[0] <= tiles.FEW_TOKENS:
        y = _few_tokens(x, weight, bias, operands)
        return y if base is None else y.add_(base)
    return product(x, _effective_weight(weight, operands, x.dtype), bias, base)


def keep(x: Tensor, weight: Tensor | None, update: Update, branch: Branch | None = None) -> tuple[Tensor, ...]:
    """W0 + dW (or dW) for x of shape (tokens, in) and, if any, the packed factors; nothing where none is formed.

    `branch`: where they may have been formed ahead.
    """
    if x.shape[0] <= tiles.FEW_TOKENS:
        return ()
    formed = () if branch is None else branch.take(weight, update.factors[0], x.dtype)
    if formed:
        return formed
    operands = prepare(update)
    return (_effective_weight(weight, operands, x.dtype), *packed_factors(operands))


def keep_ahead(parts: Sequence[tuple[Tensor | None, Update]], dtype: torch.dtype, branch: Branch) -> None:
    """Form what `keep` would for an x of `dtype` and each weight and update, one after the other on `branch`.

    Only weights whose factors are packed: of small ones it was not measured.
    """
    made = [(weight, prepare(update), update.factors[0]) for weight, update in parts if is_packed(update)]
    outs = [_empty_weight(weight, operands, dtype) for weight, operands, _ in made]
    builds = [partial(build, weight, out, operands) for (weight, operands, _), out in zip(made, outs, strict=True)]
    for (weight, operands, factor), out, done in zip(made, outs, branch.launch(builds), strict=True):
        branch.put(weight, factor, Ahead((out, *packed_factors(operands)), done))


def product(x: Tensor, effective: Tensor, bias: Tensor | None, base: Tensor | None) -> Tensor:
    """``x @ effective^T + bias``, or + `base`."""
    if base is not None:
        return torch.addmm(base, x, effective.t())
    if bias is not None:
        return torch.addmm(bias.to(x.dtype), x, effective.t())
    return torch.mm(x, effective.t())


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    update: Update,
    *,
    needs_input_grad: bool = True,
    needs_factor_grad: bool = True,
    kept: tuple[Tensor, ...] = (),
    branch: Branch | None = None,
) -> Gradients:
    """Gradients of x and of A, B, C, D from `grad` (tokens, out) and `x` (tokens, in), both in x's dtype.

    The factor gradients are float32, and zero-sized when `needs_factor_grad` is false. `kept`: what `keep` returned.
    `branch`: where they are computed beside the rest, if the weight was kept.
    """
    if x.shape[0] == 0:
        sums = [torch.zeros_like(f) if needs_factor_grad else f.new_empty(0) for f in update.factors]
        return (torch.zeros_like(x) if needs_input_grad else None, sums[0], sums[1], sums[2], sums[3])
    operands = prepare(update, kept[1:])
    built = kept[0] if kept else None
    if not needs_factor_grad:
        empty = update.factors[0].new_empty(0)
        if not needs_input_grad:
            return None, empty, empty, empty, empty
        built = _effective_weight(weight, operands, x.dtype) if built is None else built
        return torch.mm(grad, built), empty, empty, empty, empty
    rebuilds = needs_input_grad and built is None
    reduces = max(operands.geometry.ranks) <= tiles.RANK_BLOCK
    if branch is not None and reduces and not rebuilds:
        sums = _factor_gradients_beside(grad, x, operands, branch)
        grad_x = None if built is None else torch.mm(grad, built)
        return (grad_x if needs_input_grad else None), sums[0], sums[1], sums[2], sums[3]
    g = torch.mm(grad.t(), x)
    if not reduces:
        sums = _reduce_by_gemm(g, operands, update.factors)
        if rebuilds:
            build(weight, g, operands)
    else:
        sums = reduce(g, weight, operands, rebuild=rebuilds)
    grad_x = torch.mm(grad, g if built is None else built) if needs_input_grad else None
    return grad_x, sums[0], sums[1], sums[2], sums[3]


def build(weight: Tensor | None, out: Tensor, operands: Operands) -> None:
    """Write W0 + dW (or dW) to every element of `out` (out, in)."""
    geometry = operands.geometry
    dtypes = (None if weight is None else weight.dtype, out.dtype)
    strides = None if weight is None else (weight.stride(0), weight.stride(1))
    tile = tiles.tile_for("build_with_start" if geometry.has_start else "build", geometry.device)
    plan = plans.build(geometry, dtypes, strides, (out.stride(0), out.stride(1)), tile)
    _launch(plan, operands, (weight, out, *operands.pointers), operands.scaling)


def reduce(g: Tensor, weight: Tensor | None, operands: Operands, *, rebuild: bool) -> list[Tensor]:
    """The four factor gradients from G (out, in), which `rebuild` overwrites with W0 + dW (or dW) in its own dtype."""
    launch, _, grads = _reduction(g, weight, operands, rebuild)
    launch()
    return grads


def _factor_gradients_beside(grad: Tensor, x: Tensor, operands: Operands, branch: Branch) -> list[Tensor]:
    """G = dY^T X, and on `branch` its reduction; the gradients are there when that is joined."""
    g = torch.mm(grad.t(), x)
    reduction, sums, grads = _reduction(g, None, operands, False)
    branch.run(reduction, (g, sums, operands), grads)
    return grads


def _reduction(
    g: Tensor, weight: Tensor | None, operands: Operands, rebuild: bool
) -> tuple[Callable[[], None], Tensor, list[Tensor]]:
    """The launches of `reduce`, which allocate nothing, the partial sums between them, and the gradients."""
    geometry, scaling = operands.geometry, operands.scaling
    if not rebuild:
        weight = None
    plan = reduction_plan(geometry, weight, g.dtype, rebuild=rebuild)
    sums = torch.empty(plan.workspace, dtype=torch.float32, device=g.device)
    (rank_m, rank_d), rows, columns = geometry.ranks, geometry.rows, geometry.columns
    grads = [
        torch.empty(shape, dtype=torch.float32, device=g.device)
        for shape in ((rank_m, columns), (rows, rank_m), (rank_d, columns), (rows, rank_d))
    ]

    def launch() -> None:
        tensors = (g, weight, g if rebuild else None, *operands.pointers, sums)
        _launch(plan.reduce, operands, tensors, scaling, limit(scaling, operands.loss_scale))
        _launch(plan.finish, operands, (sums, *grads), scaling)

    return launch, sums, grads


def reduction_plan(geometry: Geometry, weight: Tensor | None, dtype: torch.dtype, *, rebuild: bool) -> plans.Reduction:
    """How `reduce` treats a G of `dtype`; its `workspace` is what a backward holds besides G, factors and results."""
    return plans.reduction(
        geometry,
        (None if weight is None else weight.dtype, dtype),
        None if weight is None else (weight.stride(0), weight.stride(1)),
        rebuild,
        tiles.tile_for(_reduction_tile(geometry, rebuild, dtype), geometry.device),
        tiles.REDUCE_PROGRAMS,
    )


def _reduce_by_gemm(g: Tensor, operands: Operands, factors: Factors) -> list[Tensor]:
    """The factor gradients for large ranks: Gm / s (in place of G) and Gp / s as tensors, then four GEMMs."""
    direction = torch.empty_like(g)
    plan = plans.mask(operands.geometry, g.dtype)
    _launch(plan, operands, (g, g, direction, *operands.pointers[:4]), limit(operands.scaling, operands.loss_scale))
    a, b, c, d = contiguous(factors)
    grad_b, grad_d = _gemm_float32(g, a.t()), _gemm_float32(direction, c.t())
    grad_a, grad_c = _gemm_float32(g.t(), b).t().contiguous(), _gemm_float32(direction.t(), d).t().contiguous()
    scaling = operands.scaling if operands.in_memory is None else operands.in_memory[0]
    return [gradient.mul_(scaling) for gradient in (grad_a, grad_b, grad_c, grad_d)]


def _gemm_float32(tile: Tensor, factor: Tensor) -> Tensor:
    """tile (m, k) @ factor (k, rank) in float32; a 16-bit tile meets the factor as a sum of two 16-bit parts."""
    if tile.dtype == torch.float32:
        return tile @ factor
    high = factor.to(tile.dtype)
    low = (factor - high.float()).to(tile.dtype)
    parts = torch.cat([high, low], dim=1)
    product = torch.mm(tile, parts, out_dtype=torch.float32) if tile.is_cuda else tile.float() @ parts.float()
    rank = factor.shape[1]
    return product[:, :rank] + product[:, rank:]


def _effective_weight(weight: Tensor | None, operands: Operands, dtype: torch.dtype) -> Tensor:
    """W0 + dW (or dW) as (out, in), with the weight's own memory order."""
    out = _empty_weight(weight, operands, dtype)
    build(weight, out, operands)
    return out


def _empty_weight(weight: Tensor | None, operands: Operands, dtype: torch.dtype) -> Tensor:
    rows, columns = operands.geometry.rows, operands.geometry.columns
    factor = operands.pointers[0]
    assert factor is not None
    if weight is not None and weight.stride(0) < weight.stride(1):
        return torch.empty(columns, rows, dtype=dtype, device=factor.device).t()
    return torch.empty(rows, columns, dtype=dtype, device=factor.device)


def _few_tokens(x: Tensor, weight: Tensor | None, bias: Tensor | None, operands: Operands) -> Tensor:
    """One launch for at most FEW_TOKENS tokens; see `few_tokens_kernel`."""
    geometry = operands.geometry
    if x.stride(1) != 1:
        x = x.contiguous()
    tokens, rows = x.shape[0], geometry.rows
    plan = plans.few_tokens(
        geometry,
        (x.dtype, None if weight is None else weight.dtype, None if bias is None else bias.dtype),
        None if weight is None else (weight.stride(0), weight.stride(1)),
        tokens,
        x.stride(0),
        tiles.tile_for(_few_tokens_tile(geometry, x.dtype), geometry.device),
        tiles.FEW_TOKEN_PROGRAMS,
    )
    y = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    partial = counters = None
    if plan.splits > 1:
        partial = torch.empty(plan.splits * tokens * rows, dtype=torch.float32, device=x.device)
        counters = _arrival_counters(x.device, plan.row_blocks)
    tensors = (x, weight, bias, y, partial, counters, *operands.pointers)
    _launch(plan.launch, operands, tensors, operands.scaling)
    return y


def _arrival_counters(device: torch.device, count: int) -> Tensor:
    """Zeros that `few_tokens_kernel` leaves at zero, one buffer per stream: two streams must not share a count.

    A captured graph gets its own, zeroed by the graph: it may replay on any stream.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = (device.index, torch._C._cuda_getCurrentRawStream(device.index))
    counters = _counters.get(key)
    if counters is None or counters.numel() < count:
        counters = torch.zeros(max(count, 4096), dtype=torch.int32, device=device)
        _counters[key] = counters
    return counters


_counters: dict[tuple[int, int], Tensor] = {}


def _reduction_tile(geometry: Geometry, rebuild: bool, dtype: torch.dtype) -> str:
    if max(geometry.ranks) > tiles.SMALL_RANK_BLOCK:
        return "reduce_wide"
    if dtype != torch.bfloat16:
        return "reduce_three_parts"
    return "reduce_and_rebuild" if rebuild else "reduce"


def _few_tokens_tile(geometry: Geometry, dtype: torch.dtype) -> str:
    """Four stages fit for one block of ranks; float32 operands, or start factors besides, take twice as much."""
    heavy = dtype == torch.float32 or geometry.has_start
    limit = tiles.SMALL_RANK_BLOCK if heavy else tiles.RANK_BLOCK
    return "few_tokens" if max(geometry.ranks) <= limit else "few_tokens_wide"


def _launch(launch: Launch, operands: Operands, tensors: tuple[Tensor | None, ...], *numbers: float) -> None:
    """Launch with `numbers`, s or 1 / |s|, or where they are in memory with their address for each."""
    if operands.in_memory is None:
        launch(operands.geometry.device, tensors, numbers)
    else:
        launch(operands.geometry.device, (*tensors, *[operands.in_memory] * len(numbers)))
