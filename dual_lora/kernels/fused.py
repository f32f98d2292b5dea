"""Forward and backward of one layer with the Triton kernels and cuBLAS; the same functions as in `tiled`.

Forward: build W0 + dW into a transient buffer, one GEMM; a few tokens take one kernel instead, which never writes W0 + dW.
Backward: G = dY^T X by GEMM, one pass over G that reduces it to the factor gradients and, in place, turns it into W0 + dW,
then dX = dY (W0 + dW) by GEMM. One buffer of out x in lives during a call, none after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dual_lora.kernels import launch as geometry
from dual_lora.kernels import triton_kernels as kernels
from dual_lora.kernels.launch import TILES, cdiv, estimator_constants, launch, rule_constants
from dual_lora.kernels.packing import Prepared, prepare
from dual_lora.kernels.rule import UpdateRule
from dual_lora.kernels.triton_few_tokens import few_tokens_kernel

Factors = tuple[Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]

# bf16 parts of a factor in the products that reduce a bf16 G: 1 adds one rounding of the size of G's own.
FACTOR_PARTS = 1


def delta_weight(factors: Factors, scaling: float, rule: UpdateRule, start: Factors | None = None) -> Tensor:
    """The update as (out, in) float32."""
    a, b, _, _ = factors
    out = torch.empty(b.shape[0], a.shape[1], dtype=torch.float32, device=a.device)
    _build(None, out, prepare(factors), scaling, rule, start)
    return out


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    factors: Factors,
    scaling: float,
    rule: UpdateRule,
    *,
    transposed: bool = False,
    start: Factors | None = None,
    base: Tensor | None = None,
    reuse: bool = False,
) -> Tensor:
    """``x @ (W0 + dW)^T + bias`` for x of shape (tokens, in); without `weight`, the update's part, added to `base`.

    `reuse`: as in `prepare`.
    """
    if x.shape[0] == 0:
        return x.new_empty(0, factors[1].shape[0])
    prepared = prepare(factors, reuse=reuse)
    oriented = weight.t() if weight is not None and transposed else weight
    shape = (factors[1].shape[0], factors[0].shape[1])
    if x.shape[0] <= geometry.FEW_TOKENS and base is None:
        return _few_tokens(x, oriented, bias, prepared, factors[1].shape[0], scaling, rule, start)
    effective = _effective_weight(oriented, prepared, shape, scaling, rule, start, x.dtype)
    if base is not None:
        return torch.addmm(base, x, effective.t())
    if bias is not None:
        return torch.addmm(bias.to(x.dtype), x, effective.t())
    return x @ effective.t()


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    factors: Factors,
    scaling: float,
    rule: UpdateRule,
    *,
    transposed: bool = False,
    start: Factors | None = None,
    needs_input_grad: bool = True,
    needs_factor_grad: bool = True,
) -> Gradients:
    """Gradients of x and of A, B, C, D from `grad` (tokens, out) and `x` (tokens, in), both in x's dtype.

    The factor gradients are float32, and zero-sized when `needs_factor_grad` is false.
    """
    oriented = weight.t() if weight is not None and transposed else weight
    if x.shape[0] == 0:
        sums = [torch.zeros_like(f) if needs_factor_grad else f.new_empty(0) for f in factors]
        return (torch.zeros_like(x) if needs_input_grad else None, sums[0], sums[1], sums[2], sums[3])
    prepared, shape = prepare(factors), (factors[1].shape[0], factors[0].shape[1])
    if not needs_factor_grad:
        empty = factors[0].new_empty(0)
        if not needs_input_grad:
            return None, empty, empty, empty, empty
        effective = _effective_weight(oriented, prepared, shape, scaling, rule, start, x.dtype)
        return grad @ effective, empty, empty, empty, empty
    g = grad.t() @ x
    if max(prepared.ranks) > geometry.RANK_BLOCK:
        sums = _reduce_by_gemm(g, prepared, factors, scaling, rule)
        if needs_input_grad:
            _build(oriented, g, prepared, scaling, rule, start)
    else:
        sums = _reduce(g, oriented, prepared, scaling, rule, start, rebuild=needs_input_grad)
    return (grad @ g if needs_input_grad else None, sums[0], sums[1], sums[2], sums[3])


def _effective_weight(
    weight: Tensor | None,
    prepared: Prepared,
    shape: tuple[int, int],
    scaling: float,
    rule: UpdateRule,
    start: Factors | None,
    dtype: torch.dtype,
) -> Tensor:
    """W0 + dW (or dW) as (out, in) in `dtype`, with the weight's own memory order."""
    device = prepared.factors[0].device
    if weight is not None and weight.stride(0) < weight.stride(1):
        out = torch.empty(shape[1], shape[0], dtype=dtype, device=device).t()
    else:
        out = torch.empty(shape, dtype=dtype, device=device)
    _build(weight, out, prepared, scaling, rule, start)
    return out


def _build(
    weight: Tensor | None, out: Tensor, prepared: Prepared, scaling: float, rule: UpdateRule, start: Factors | None
) -> None:
    """Write W0 + dW (or dW) to every element of `out` (out, in)."""
    rows, columns = out.shape
    tile = TILES["build"]
    row_blocks, tiles = cdiv(rows, tile.rows), cdiv(columns, tile.columns)
    tiles_per_program = min(tile.steps, tiles)
    launch(
        kernels.build_weight_kernel,
        (cdiv(tiles, tiles_per_program), row_blocks, 1),
        (
            weight, out, *prepared.factors, *_start_factors(start), float(scaling), rows, columns,
            prepared.rows_padded, prepared.columns_padded,
            *(weight.stride() if weight is not None else (0, 0)), *out.stride(), tiles_per_program,
        ),
        {
            **prepared.constants, **rule_constants(rule), "HAS_WEIGHT": weight is not None,
            "HAS_START": start is not None,
            "BLOCK_ROWS": tile.rows, "BLOCK_COLUMNS": tile.columns, "STAGES": tile.stages,
        },
        tile.warps,
    )  # fmt: skip


def _reduce(
    g: Tensor,
    weight: Tensor | None,
    prepared: Prepared,
    scaling: float,
    rule: UpdateRule,
    start: Factors | None,
    *,
    rebuild: bool,
) -> list[Tensor]:
    """The four factor gradients from G (out, in), which `rebuild` overwrites with W0 + dW (or dW) in its own dtype."""
    rows, columns = g.shape
    rank_m, rank_d = prepared.ranks
    ranks = rank_m + rank_d
    tile = TILES["reduce"] if max(prepared.ranks) <= geometry.SMALL_RANK_BLOCK else TILES["reduce_wide"]
    strips = cdiv(rows, tile.rows * tile.row_blocks)
    tiles = cdiv(columns, tile.columns)
    wanted = cdiv(geometry.REDUCE_PROGRAMS * geometry.multiprocessors(g.device), strips)
    tiles_per_chunk = cdiv(tiles, min(wanted, tiles))
    chunks = cdiv(tiles, tiles_per_chunk)
    sums = torch.empty(strips * ranks * columns + chunks * ranks * rows, dtype=torch.float32, device=g.device)
    column_sums, row_sums = sums[: strips * ranks * columns], sums[strips * ranks * columns :]
    read_weight = rebuild and weight is not None
    launch(
        kernels.reduce_gradient_kernel,
        (chunks, strips, 1),
        (
            g, weight if read_weight else None, g if rebuild else None, *prepared.factors,
            *_start_factors(start), column_sums, row_sums, float(scaling), _limit(scaling), rows, columns,
            prepared.rows_padded, prepared.columns_padded,
            *(weight.stride() if read_weight and weight is not None else (0, 0)), tiles_per_chunk,
        ),
        {
            **prepared.constants, **rule_constants(rule), **estimator_constants(rule),
            "HAS_WEIGHT": read_weight, "HAS_OUT": rebuild, "HAS_START": start is not None,
            "TILE_PARTS": FACTOR_PARTS if g.dtype == torch.bfloat16 else 3,
            "BLOCK_ROWS": tile.rows, "BLOCK_COLUMNS": tile.columns, "ROW_BLOCKS": tile.row_blocks, "STAGES": tile.stages,
        },
        tile.warps,
    )  # fmt: skip
    shapes = ((rank_m, columns), (rows, rank_m), (rank_d, columns), (rows, rank_d))
    grads = [torch.empty(shape, dtype=torch.float32, device=g.device) for shape in shapes]
    programs = cdiv(ranks * columns, geometry.FINISH_BLOCK) + cdiv(ranks * rows, geometry.FINISH_BLOCK)
    launch(
        kernels.finish_gradient_kernel,
        (programs, 1, 1),
        (column_sums, row_sums, *grads, float(scaling), strips, chunks, rows, columns),
        {"RANK_M": rank_m, "RANK_D": rank_d, "BLOCK": geometry.FINISH_BLOCK},
        geometry.FINISH_WARPS,
    )
    return grads


def _reduce_by_gemm(g: Tensor, prepared: Prepared, factors: Factors, scaling: float, rule: UpdateRule) -> list[Tensor]:
    """The factor gradients for large ranks: Gm / s (in place of G) and Gp / s as tensors, then four GEMMs."""
    a, b, c, d = (f.float() for f in factors)
    rows, columns = g.shape
    tile = TILES["mask"]
    direction = torch.empty_like(g)
    launch(
        kernels.mask_gradient_kernel,
        (cdiv(columns, tile.columns), cdiv(rows, tile.rows), 1),
        (
            g, g, direction, *prepared.factors, _limit(scaling), rows, columns,
            prepared.rows_padded, prepared.columns_padded,
        ),
        {
            **prepared.constants, **rule_constants(rule), **estimator_constants(rule),
            "BLOCK_ROWS": tile.rows, "BLOCK_COLUMNS": tile.columns,
        },
        tile.warps,
    )  # fmt: skip
    grad_b, grad_d = _gemm_float32(g, a.t()), _gemm_float32(direction, c.t())
    grad_a, grad_c = _gemm_float32(g.t(), b).t().contiguous(), _gemm_float32(direction.t(), d).t().contiguous()
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


def _few_tokens(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    prepared: Prepared,
    rows: int,
    scaling: float,
    rule: UpdateRule,
    start: Factors | None,
) -> Tensor:
    """One launch for at most FEW_TOKENS tokens; see `few_tokens_kernel`."""
    tokens, columns = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    tile = TILES["few_tokens"]
    row_blocks, tiles = cdiv(rows, tile.rows), cdiv(columns, tile.columns)
    wanted = cdiv(geometry.FEW_TOKEN_PROGRAMS * geometry.multiprocessors(x.device), row_blocks)
    tiles_per_split = cdiv(tiles, min(wanted, tiles))
    splits = cdiv(tiles, tiles_per_split)
    y = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    partial = torch.empty(splits, tokens, rows, dtype=torch.float32, device=x.device) if splits > 1 else None
    launch(
        few_tokens_kernel,
        (row_blocks, splits, 1),
        (
            x, weight, bias, y, partial, _arrival_counters(x.device, row_blocks) if splits > 1 else None,
            *prepared.factors, *_start_factors(start), float(scaling), tokens, rows, columns,
            prepared.rows_padded, prepared.columns_padded,
            *(weight.stride() if weight is not None else (0, 0)), x.stride(0), tiles_per_split,
        ),
        {
            **prepared.constants, **rule_constants(rule), "HAS_WEIGHT": weight is not None,
            "HAS_BIAS": bias is not None, "HAS_START": start is not None, "SPLITS": splits,
            "BLOCK_TOKENS": max(16, 1 << (tokens - 1).bit_length()),
            "BLOCK_ROWS": tile.rows, "BLOCK_COLUMNS": tile.columns, "STAGES": tile.stages,
        },
        tile.warps,
    )  # fmt: skip
    return y


def _arrival_counters(device: torch.device, count: int) -> Tensor:
    """Zeros that `few_tokens_kernel` leaves at zero, one buffer per stream: two streams must not share a count.

    A captured graph gets its own, zeroed by the graph: it may replay on any stream.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    counters = _counters.get((device, stream))
    if counters is None or counters.numel() < count:
        counters = torch.zeros(max(count, 4096), dtype=torch.int32, device=device)
        _counters[(device, stream)] = counters
    return counters


_counters: dict[tuple[torch.device, int], Tensor] = {}


def _limit(scaling: float) -> float:
    """Where the clip of s G U to [-1, 1] acts on G U."""
    return 1.0 / abs(scaling) if scaling else float("inf")


def _start_factors(start: Factors | None) -> tuple[Tensor | None, ...]:
    return (None,) * 4 if start is None else tuple(f.to(torch.float32).contiguous() for f in start)
