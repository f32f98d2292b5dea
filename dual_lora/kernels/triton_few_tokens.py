"""The Triton kernel for a few tokens, as in generation without merging: W0 is read once, W0 + dW is never written."""

from __future__ import annotations

import triton
import triton.language as tl

from dual_lora.kernels.triton_products import (
    activate,
    dot_split,
    fence,
    left_parts,
    number,
    product,
    right_parts,
    split,
    start_update,
)


@triton.jit
def few_tokens_kernel(
    x, weight, bias, y, partial, arrived, a, b, c, d, a0, b0, c0, d0, scaling, n_tokens, n_rows, n_columns,
    rows_padded, columns_padded, weight_row_stride, weight_column_stride, x_stride, tiles_per_split,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr, PACKED: tl.constexpr,
    FENCE: tl.constexpr, RELU: tl.constexpr, SIGN: tl.constexpr, IN_MEMORY: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_START: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y = x (W0 + dW)^T + bias for at most BLOCK_TOKENS tokens; conventions as in `triton_kernels`.

    Programs split the columns SPLITS ways; the last to finish a row block adds the partial sums in a fixed order, so
    the result does not depend on which one that is. `arrived` counts them: zero before and after, one int32 per row
    block.
    """
    scaling = number(scaling, 0, IN_MEMORY)
    row_block, part = tl.program_id(0), tl.program_id(1)
    first = part * tiles_per_split
    tiles = tl.minimum(tiles_per_split, tl.cdiv(n_columns, BLOCK_COLUMNS) - first)
    rows = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    tokens = tl.arange(0, BLOCK_TOKENS)
    long_rows = rows.to(tl.int64)[:, None]
    SMALL: tl.constexpr = RANK_M <= RANK_BLOCK and RANK_D <= RANK_BLOCK
    if SMALL:
        b_parts = left_parts(b, rows, n_rows, rows_padded, 0, RANK_M, RANK_BLOCK, PACKED)
        d_parts = left_parts(d, rows, n_rows, rows_padded, 0, RANK_D, RANK_BLOCK, PACKED)
    total = tl.zeros((BLOCK_ROWS, BLOCK_TOKENS), dtype=tl.float32)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        columns = (first + tile) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        long_columns = columns.to(tl.int64)[None, :]
        mask = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
        if SMALL:
            zero = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
            a_parts = right_parts(a, columns, n_columns, columns_padded, 0, RANK_M, RANK_BLOCK, PACKED)
            c_parts = right_parts(c, columns, n_columns, columns_padded, 0, RANK_D, RANK_BLOCK, PACKED)
            fence(FENCE)
            m = dot_split(b_parts, a_parts, zero)
            p = dot_split(d_parts, c_parts, zero)
        else:
            m = product(
                b, a, rows, columns, n_rows, n_columns, rows_padded, columns_padded, RANK_M, RANK_BLOCK, PACKED, FENCE
            )
            p = product(
                d, c, rows, columns, n_rows, n_columns, rows_padded, columns_padded, RANK_D, RANK_BLOCK, PACKED, FENCE
            )
        effective = activate(m, p, RELU, SIGN)
        if HAS_START:
            effective -= start_update(
                a0, b0, c0, d0, rows, columns, n_rows, n_columns, RANK_M, RANK_D, RANK_BLOCK, RELU, SIGN
            )
        effective *= scaling
        if HAS_WEIGHT:
            base = tl.load(
                weight + long_rows * weight_row_stride + long_columns * weight_column_stride, mask=mask, other=0.0
            )
            effective += base.to(tl.float32)
        x_tile = tl.load(
            x + tokens.to(tl.int64)[None, :] * x_stride + columns[:, None],
            mask=(columns[:, None] < n_columns) & (tokens[None, :] < n_tokens),
            other=0.0,
        )
        if x.dtype.element_ty == tl.float32:
            total = dot_split(split(effective), split(x_tile), total)
        else:
            total = tl.dot(effective.to(x.dtype.element_ty), x_tile, total)
    offsets = tokens[None, :] * n_rows + rows[:, None]
    inside = (rows[:, None] < n_rows) & (tokens[None, :] < n_tokens)
    if SPLITS > 1:
        tl.store(partial + part * n_tokens * n_rows + offsets, total, mask=inside)
        tl.debug_barrier()
        last = tl.atomic_add(arrived + row_block, 1, sem="acq_rel") == SPLITS - 1
        if last:
            total = tl.zeros((BLOCK_ROWS, BLOCK_TOKENS), dtype=tl.float32)
            for _ in range(SPLITS):
                # Past the L1 cache, which does not see what other programs wrote.
                total += tl.load(partial + offsets, mask=inside, other=0.0, cache_modifier=".cg")
                partial += n_tokens * n_rows
            tl.store(arrived + row_block, 0)
            _store_output(y, bias, total, offsets, rows, inside, n_rows, HAS_BIAS)
    else:
        _store_output(y, bias, total, offsets, rows, inside, n_rows, HAS_BIAS)


@triton.jit
def _store_output(y, bias, total, offsets, rows, inside, n_rows, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=rows < n_rows, other=0.0).to(tl.float32)[:, None]
    tl.store(y + offsets, total.to(y.dtype.element_ty), mask=inside)
