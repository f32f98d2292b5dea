"""The Triton kernels of large products: build W0 + dW, reduce G = dL/dW to the factor gradients.

Conventions: a weight is (out, in) with any strides (a transposed Conv1D weight is a matter of strides) and 64-bit
offsets (it may have more than 2^31 elements); factors are A (RANK_M, in), B (out, RANK_M), C (RANK_D, in), D (out,
RANK_D), with PACKED in the layout of `pack_factors_kernel`, else contiguous float32; a0 ... d0 are the frozen factors
of `subtract_start`. Ranks are padded with zeros to multiples of RANK_BLOCK. `scaling` is a run-time float, so a warm-up
does not compile anything; IN_MEMORY: a pointer to s and, next to it, 1 / |s|, so that a recorded launch follows it.
"""

# mypy: disable-error-code="assignment"
# (The kernels are compiled by Triton, whose tuples may grow.)

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
def build_weight_kernel(
    weight, out, a, b, c, d, a0, b0, c0, d0, scaling, n_rows, n_columns, rows_padded, columns_padded,
    weight_row_stride, weight_column_stride, out_row_stride, out_column_stride, tiles_per_program,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr, PACKED: tl.constexpr,
    FENCE: tl.constexpr, RELU: tl.constexpr, SIGN: tl.constexpr, IN_MEMORY: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_START: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out = W0 + s U(BA) V(DC), summed in float32 and rounded once; a program walks along one block of rows."""
    scaling = number(scaling, 0, IN_MEMORY)
    first = tl.program_id(0) * tiles_per_program
    tiles = tl.minimum(tiles_per_program, tl.cdiv(n_columns, BLOCK_COLUMNS) - first)
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    long_rows = rows.to(tl.int64)[:, None]
    SMALL: tl.constexpr = RANK_M <= RANK_BLOCK and RANK_D <= RANK_BLOCK
    if SMALL:
        b_parts = left_parts(b, rows, n_rows, rows_padded, 0, RANK_M, RANK_BLOCK, PACKED)
        d_parts = left_parts(d, rows, n_rows, rows_padded, 0, RANK_D, RANK_BLOCK, PACKED)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        columns = (first + tile) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        long_columns = columns.to(tl.int64)[None, :]
        mask = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
        if HAS_WEIGHT:  # first, so that the slow load is under way while the products run
            base = tl.load(
                weight + long_rows * weight_row_stride + long_columns * weight_column_stride, mask=mask, other=0.0
            )
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
        update = activate(m, p, RELU, SIGN)
        if HAS_START:
            update -= start_update(
                a0, b0, c0, d0, rows, columns, n_rows, n_columns, RANK_M, RANK_D, RANK_BLOCK, RELU, SIGN
            )
        update *= scaling
        if HAS_WEIGHT:
            update += base.to(tl.float32)
        pointers = out + long_rows * out_row_stride + long_columns * out_column_stride
        tl.store(pointers, update.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_tiles(
    g, m, p, limit, RELU: tl.constexpr, SIGN: tl.constexpr, CLIP: tl.constexpr, HARD_TANH: tl.constexpr
):
    """(Gm / s, Gp / s) of one tile of G, float32; `limit` is 1 / |s|.

    Leaving s to the end makes Gm / s a signed copy of G with Sign, exact in G's own dtype, and saves a product.
    """
    gm = g * p
    if SIGN:
        gm = tl.where(p > 0.0, g, -g)
    if RELU:
        gm = tl.where(m > 0.0, gm, 0.0)
        m = tl.maximum(m, 0.0)
    q = m * g
    if CLIP:
        q = tl.minimum(tl.maximum(q, -limit), limit)
    if HARD_TANH:
        q = tl.where(tl.abs(p) <= 1.0, q, 0.0)
    return gm, q


@triton.jit
def _dot_tile(tile, parts, result, TILE_PARTS: tl.constexpr):
    """result + tile @ factor. TILE_PARTS 3: float32-accurate; 1 or 2: tile in bf16, factor as that many bf16 parts."""
    if TILE_PARTS == 3:
        return dot_split(split(tile), parts, result)
    rounded = tile.to(tl.bfloat16)
    if TILE_PARTS == 2:
        result = tl.dot(rounded, parts[1], result)
    return tl.dot(rounded, parts[0], result)


@triton.jit
def _transposed(parts):
    return tl.trans(parts[0]), tl.trans(parts[1]), tl.trans(parts[2])


@triton.jit
def reduce_gradient_kernel(
    grad, weight, out, a, b, c, d, a0, b0, c0, d0, sums, scaling, limit, n_rows, n_columns,
    rows_padded, columns_padded, weight_row_stride, weight_column_stride, tiles_per_chunk, row_sums_begin,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr, PACKED: tl.constexpr,
    FENCE: tl.constexpr, RELU: tl.constexpr, SIGN: tl.constexpr, IN_MEMORY: tl.constexpr,
    CLIP: tl.constexpr, HARD_TANH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_OUT: tl.constexpr, HAS_START: tl.constexpr, TILE_PARTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, ROW_BLOCKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Read G once; write partial sums of the four factor gradients and, with HAS_OUT, W0 + dW for dL/dx.

    A program owns ROW_BLOCKS * BLOCK_ROWS rows of one chunk of columns and walks along the chunk. dL/dB and dL/dD of
    its rows stay in registers until the end ([chunks, out * (RANK_M + RANK_D)] from `sums + row_sums_begin` on); dL/dA
    and dL/dC of each column tile are written as sums over its rows ([programs along the rows, (RANK_M + RANK_D) * in]
    from `sums` on). `grad` and `out` are contiguous; `out` may be `grad` itself: each tile is read before it is
    written, by one program. Both ranks must fit one RANK_BLOCK. All sums lack the factor s.
    """
    scaling, limit = number(scaling, 0, IN_MEMORY), number(limit, 1, IN_MEMORY)
    chunk, strip = tl.program_id(0), tl.program_id(1)
    first = chunk * tiles_per_chunk
    tiles = tl.minimum(tiles_per_chunk, tl.cdiv(n_columns, BLOCK_COLUMNS) - first)
    rank = tl.arange(0, RANK_BLOCK)
    sums_b, sums_d, b_blocks, d_blocks = (), (), (), ()
    for block in tl.static_range(ROW_BLOCKS):
        rows = (strip * ROW_BLOCKS + block) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        b_blocks = b_blocks + (left_parts(b, rows, n_rows, rows_padded, 0, RANK_M, RANK_BLOCK, PACKED),)
        d_blocks = d_blocks + (left_parts(d, rows, n_rows, rows_padded, 0, RANK_D, RANK_BLOCK, PACKED),)
        sums_b = sums_b + (tl.zeros((BLOCK_ROWS, RANK_BLOCK), dtype=tl.float32),)
        sums_d = sums_d + (tl.zeros((BLOCK_ROWS, RANK_BLOCK), dtype=tl.float32),)
    column_sums = sums + strip.to(tl.int64) * (RANK_M + RANK_D) * n_columns
    for tile in tl.range(0, tiles, num_stages=STAGES):
        columns = (first + tile) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        long_columns = columns.to(tl.int64)[None, :]
        a_parts = right_parts(a, columns, n_columns, columns_padded, 0, RANK_M, RANK_BLOCK, PACKED)
        c_parts = right_parts(c, columns, n_columns, columns_padded, 0, RANK_D, RANK_BLOCK, PACKED)
        sum_a = tl.zeros((BLOCK_COLUMNS, RANK_BLOCK), dtype=tl.float32)
        sum_c = tl.zeros((BLOCK_COLUMNS, RANK_BLOCK), dtype=tl.float32)
        new_b, new_d = (), ()
        for block in tl.static_range(ROW_BLOCKS):
            rows = (strip * ROW_BLOCKS + block) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            long_rows = rows.to(tl.int64)[:, None]
            mask = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
            g = tl.load(grad + long_rows * n_columns + long_columns, mask=mask, other=0.0)
            if HAS_WEIGHT:
                base = tl.load(
                    weight + long_rows * weight_row_stride + long_columns * weight_column_stride, mask=mask, other=0.0
                )
            zero = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
            fence(FENCE)
            m = dot_split(b_blocks[block], a_parts, zero)
            p = dot_split(d_blocks[block], c_parts, zero)
            if HAS_OUT:
                update = activate(m, p, RELU, SIGN)
                if HAS_START:
                    update -= start_update(
                        a0, b0, c0, d0, rows, columns, n_rows, n_columns, RANK_M, RANK_D, RANK_BLOCK, RELU, SIGN
                    )
                update *= scaling
                if HAS_WEIGHT:
                    update += base.to(tl.float32)
                tl.store(out + long_rows * n_columns + long_columns, update.to(out.dtype.element_ty), mask=mask)
            gm, q = _gradient_tiles(g.to(tl.float32), m, p, limit, RELU, SIGN, CLIP, HARD_TANH)
            new_b = new_b + (_dot_tile(gm, _transposed(a_parts), sums_b[block], TILE_PARTS),)
            new_d = new_d + (_dot_tile(q, _transposed(c_parts), sums_d[block], TILE_PARTS),)
            sum_a = _dot_tile(tl.trans(gm), b_blocks[block], sum_a, TILE_PARTS)
            sum_c = _dot_tile(tl.trans(q), d_blocks[block], sum_c, TILE_PARTS)
        sums_b, sums_d = new_b, new_d
        transposed = rank.to(tl.int64)[None, :] * n_columns + columns[:, None]
        inside = columns[:, None] < n_columns
        tl.store(column_sums + transposed, sum_a, mask=inside & (rank[None, :] < RANK_M))
        tl.store(column_sums + RANK_M * n_columns + transposed, sum_c, mask=inside & (rank[None, :] < RANK_D))
    row_sums = sums + row_sums_begin + chunk.to(tl.int64) * (RANK_M + RANK_D) * n_rows
    for block in tl.static_range(ROW_BLOCKS):
        rows = (strip * ROW_BLOCKS + block) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        long_rows = rows.to(tl.int64)[:, None]
        inside = rows[:, None] < n_rows
        tl.store(row_sums + long_rows * RANK_M + rank[None, :], sums_b[block], mask=inside & (rank[None, :] < RANK_M))
        direction_sums = row_sums + RANK_M * n_rows
        tl.store(
            direction_sums + long_rows * RANK_D + rank[None, :], sums_d[block], mask=inside & (rank[None, :] < RANK_D)
        )


@triton.jit
def finish_gradient_kernel(
    sums, grad_a, grad_b, grad_c, grad_d, scaling, row_blocks, chunks, n_rows, n_columns, row_sums_begin,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, IN_MEMORY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the partial sums in a fixed order; the first programs own dL/dA and dL/dC, the others dL/dB and dL/dD."""
    scaling = number(scaling, 0, IN_MEMORY)
    column_length = (RANK_M + RANK_D) * n_columns
    row_length = (RANK_M + RANK_D) * n_rows
    column_programs = tl.cdiv(column_length, BLOCK)
    pid = tl.program_id(0)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    if pid < column_programs:
        offsets = pid * BLOCK + tl.arange(0, BLOCK)
        for _ in tl.range(0, row_blocks, loop_unroll_factor=8):  # eight loads under way, in the order of the sum
            total += tl.load(sums + offsets, mask=offsets < column_length, other=0.0)
            sums += column_length
        boundary = RANK_M * n_columns
        tl.store(grad_a + offsets, total * scaling, mask=offsets < boundary)
        tl.store(grad_c + offsets - boundary, total * scaling, mask=(offsets >= boundary) & (offsets < column_length))
    else:
        offsets = (pid - column_programs) * BLOCK + tl.arange(0, BLOCK)
        sums += row_sums_begin
        for _ in tl.range(0, chunks, loop_unroll_factor=8):
            total += tl.load(sums + offsets, mask=offsets < row_length, other=0.0)
            sums += row_length
        boundary = RANK_M * n_rows
        tl.store(grad_b + offsets, total * scaling, mask=offsets < boundary)
        tl.store(grad_d + offsets - boundary, total * scaling, mask=(offsets >= boundary) & (offsets < row_length))


@triton.jit
def mask_gradient_kernel(
    grad, magnitude, direction, a, b, c, d, limit, n_rows, n_columns, rows_padded, columns_padded,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr, PACKED: tl.constexpr,
    FENCE: tl.constexpr, RELU: tl.constexpr, SIGN: tl.constexpr, IN_MEMORY: tl.constexpr,
    CLIP: tl.constexpr, HARD_TANH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """For ranks beyond one RANK_BLOCK: `magnitude` = Gm / s and `direction` = Gp / s as tensors, for GEMMs to follow.

    `magnitude` may be `grad` itself.
    """
    limit = number(limit, 1, IN_MEMORY)
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    offsets = rows.to(tl.int64)[:, None] * n_columns + columns[None, :]
    g = tl.load(grad + offsets, mask=mask, other=0.0).to(tl.float32)
    m = product(b, a, rows, columns, n_rows, n_columns, rows_padded, columns_padded, RANK_M, RANK_BLOCK, PACKED, FENCE)
    p = product(d, c, rows, columns, n_rows, n_columns, rows_padded, columns_padded, RANK_D, RANK_BLOCK, PACKED, FENCE)
    gm, q = _gradient_tiles(g, m, p, limit, RELU, SIGN, CLIP, HARD_TANH)
    tl.store(magnitude + offsets, gm.to(magnitude.dtype.element_ty), mask=mask)
    tl.store(direction + offsets, q.to(direction.dtype.element_ty), mask=mask)
