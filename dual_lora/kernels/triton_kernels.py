"""The Triton kernels: build W0 + dW, reduce G = dL/dW to the factor gradients, multiply a few tokens by W0 + dW.

All of them form M = BA and P = DC with `_product`, with the same rank blocks in the same order, so a sign of P is the same
number wherever it is computed on one device. Offsets are 64-bit: a weight may have more than 2^31 elements.

Conventions: a weight is (out, in) with any strides (a transposed Conv1D weight is a matter of strides); factors are
contiguous float32, A (RANK_M, in), B (out, RANK_M), C (RANK_D, in), D (out, RANK_D); ranks are padded with zeros to
multiples of RANK_BLOCK. `scaling` is a run-time float, so a warm-up does not compile anything.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _split(value):
    """Three bf16 numbers whose sum is the float32 `value` to 2^-27."""
    high = value.to(tl.bfloat16)
    rest = value - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _dot_split(left, right, result, TERMS: tl.constexpr):
    """result + left @ right on tensor cores, from operands that `_split` cut into three bf16 parts.

    The products are added smallest first. TERMS 6 leaves out 2^-26 of |left| |right|, less than float32 rounds away;
    TERMS 3 leaves out 2^-17, for what is rounded to bf16 anyway. (Against tl.dot's tf32x3: the same number of tensor-core
    instructions, operands that need no transposition in shared memory, and no pass over the result for NaN.)
    """
    if TERMS == 6:
        result = tl.dot(left[1], right[1], result)
        result = tl.dot(left[2], right[0], result)
        result = tl.dot(left[0], right[2], result)
    result = tl.dot(left[1], right[0], result)
    result = tl.dot(left[0], right[1], result)
    return tl.dot(left[0], right[0], result)


@triton.jit
def _product(
    left, right, rows, columns, n_rows, n_columns,
    RANK: tl.constexpr, RANK_BLOCK: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """One tile of left @ right in float32: (len(rows), len(columns)); left (n_rows, RANK), right (RANK, n_columns)."""
    result = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
    for begin in tl.static_range(0, RANK, RANK_BLOCK):
        left_parts = _split(_left_tile(left, rows, n_rows, begin, RANK, RANK_BLOCK))
        right_parts = _split(_right_tile(right, columns, n_columns, begin, RANK, RANK_BLOCK))
        result = _dot_split(left_parts, right_parts, result, TERMS)
    return result


@triton.jit
def _left_tile(left, rows, n_rows, begin, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr):
    k = begin + tl.arange(0, RANK_BLOCK)
    mask = (rows[:, None] < n_rows) & (k[None, :] < RANK)
    return tl.load(left + rows.to(tl.int64)[:, None] * RANK + k[None, :], mask=mask, other=0.0)


@triton.jit
def _right_tile(right, columns, n_columns, begin, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr):
    k = begin + tl.arange(0, RANK_BLOCK)
    mask = (k[:, None] < RANK) & (columns[None, :] < n_columns)
    return tl.load(right + k.to(tl.int64)[:, None] * n_columns + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _activate(m, p, RELU: tl.constexpr, SIGN: tl.constexpr):
    """U(m) * V(p), with Sign(0) = -1."""
    if RELU:
        m = tl.maximum(m, 0.0)
    if SIGN:
        return tl.where(p > 0.0, m, -m)
    return m * p


@triton.jit
def _start_update(
    a0, b0, c0, d0, rows, columns, n_rows, n_columns,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr,
    RELU: tl.constexpr, SIGN: tl.constexpr, TERMS_M: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    m = _product(b0, a0, rows, columns, n_rows, n_columns, RANK_M, RANK_BLOCK, TERMS_M)
    p = _product(d0, c0, rows, columns, n_rows, n_columns, RANK_D, RANK_BLOCK, TERMS)
    return _activate(m, p, RELU, SIGN)


@triton.jit
def build_weight_kernel(
    weight, out, a, b, c, d, a0, b0, c0, d0, scaling, n_rows, n_columns,
    weight_row_stride, weight_column_stride, out_row_stride, out_column_stride,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr,
    RELU: tl.constexpr, SIGN: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_START: tl.constexpr,
    TERMS_M: tl.constexpr, TERMS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = W0 + s U(BA) V(DC), one tile per program, summed in float32 and rounded once."""
    tiles_per_row = tl.cdiv(n_columns, BLOCK_COLUMNS)
    pid = tl.program_id(0)
    rows = (pid // tiles_per_row) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = (pid % tiles_per_row) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    long_rows, long_columns = rows.to(tl.int64)[:, None], columns.to(tl.int64)[None, :]
    if HAS_WEIGHT:  # first, so that the slow load is under way while the products run
        base = tl.load(
            weight + long_rows * weight_row_stride + long_columns * weight_column_stride, mask=mask, other=0.0
        )
    m = _product(b, a, rows, columns, n_rows, n_columns, RANK_M, RANK_BLOCK, TERMS_M)
    p = _product(d, c, rows, columns, n_rows, n_columns, RANK_D, RANK_BLOCK, TERMS)
    update = _activate(m, p, RELU, SIGN)
    if HAS_START:
        update -= _start_update(
            a0, b0, c0, d0, rows, columns, n_rows, n_columns, RANK_M, RANK_D, RANK_BLOCK, RELU, SIGN, TERMS_M, TERMS
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
    if SIGN:
        gm = tl.where(p > 0.0, g, -g)
    else:
        gm = g * p
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
def _dot_tile(tile, parts, result, LOW_PRECISION: tl.constexpr):
    """result + tile @ factor; LOW_PRECISION: `tile` is taken in bf16, and the factor as its two leading parts."""
    if LOW_PRECISION:
        rounded = tile.to(tl.bfloat16)
        return tl.dot(rounded, parts[0], tl.dot(rounded, parts[1], result))
    else:
        return _dot_split(_split(tile), parts, result, 6)


@triton.jit
def _transposed(parts):
    return tl.trans(parts[0]), tl.trans(parts[1]), tl.trans(parts[2])


@triton.jit
def reduce_gradient_kernel(
    grad, weight, out, a, b, c, d, a0, b0, c0, d0, column_sums, row_sums, scaling, limit, n_rows, n_columns,
    weight_row_stride, weight_column_stride, out_row_stride, out_column_stride, tiles_per_chunk,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr,
    RELU: tl.constexpr, SIGN: tl.constexpr, CLIP: tl.constexpr, HARD_TANH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_OUT: tl.constexpr, HAS_START: tl.constexpr, LOW_PRECISION: tl.constexpr,
    TERMS_M: tl.constexpr, TERMS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, ROW_BLOCKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Read G once; write partial sums of the four factor gradients and, with HAS_OUT, W0 + dW for dL/dx.

    A program owns ROW_BLOCKS * BLOCK_ROWS rows of one chunk of columns and walks along the chunk. dL/dB and dL/dD of its
    rows stay in registers (`row_sums`: [chunks, out * (RANK_M + RANK_D)]); dL/dA and dL/dC of each column tile are written
    as sums over its rows (`column_sums`: [programs along the rows, (RANK_M + RANK_D) * in]). `out` may be `grad` itself:
    each tile is read before it is written, by one program. Both ranks must fit one RANK_BLOCK. All sums lack the factor s.
    """
    chunk, strip = tl.program_id(0), tl.program_id(1)
    rank = tl.arange(0, RANK_BLOCK)
    sums_b, sums_d = (), ()
    for _ in tl.static_range(ROW_BLOCKS):
        sums_b = sums_b + (tl.zeros((BLOCK_ROWS, RANK_BLOCK), dtype=tl.float32),)
        sums_d = sums_d + (tl.zeros((BLOCK_ROWS, RANK_BLOCK), dtype=tl.float32),)
    column_sums += strip.to(tl.int64) * (RANK_M + RANK_D) * n_columns
    for tile in tl.range(0, tiles_per_chunk, num_stages=STAGES):
        columns = (chunk * tiles_per_chunk + tile) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        long_columns = columns.to(tl.int64)[None, :]
        a_parts = _split(_right_tile(a, columns, n_columns, 0, RANK_M, RANK_BLOCK))
        c_parts = _split(_right_tile(c, columns, n_columns, 0, RANK_D, RANK_BLOCK))
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
            b_parts = _split(_left_tile(b, rows, n_rows, 0, RANK_M, RANK_BLOCK))
            d_parts = _split(_left_tile(d, rows, n_rows, 0, RANK_D, RANK_BLOCK))
            zero = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
            m = _dot_split(b_parts, a_parts, zero, TERMS_M)
            p = _dot_split(d_parts, c_parts, zero, TERMS)
            if HAS_OUT:
                update = _activate(m, p, RELU, SIGN)
                if HAS_START:
                    update -= _start_update(
                        a0, b0, c0, d0, rows, columns, n_rows, n_columns, RANK_M, RANK_D, RANK_BLOCK, RELU, SIGN,
                        TERMS_M, TERMS,
                    )  # fmt: skip
                update *= scaling
                if HAS_WEIGHT:
                    update += base.to(tl.float32)
                pointers = out + long_rows * out_row_stride + long_columns * out_column_stride
                tl.store(pointers, update.to(out.dtype.element_ty), mask=mask)
            gm, q = _gradient_tiles(g.to(tl.float32), m, p, limit, RELU, SIGN, CLIP, HARD_TANH)
            new_b = new_b + (_dot_tile(gm, _transposed(a_parts), sums_b[block], LOW_PRECISION),)
            new_d = new_d + (_dot_tile(q, _transposed(c_parts), sums_d[block], LOW_PRECISION),)
            sum_a = _dot_tile(tl.trans(gm), b_parts, sum_a, LOW_PRECISION)
            sum_c = _dot_tile(tl.trans(q), d_parts, sum_c, LOW_PRECISION)
        sums_b, sums_d = new_b, new_d
        transposed = rank.to(tl.int64)[None, :] * n_columns + columns[:, None]
        inside = columns[:, None] < n_columns
        tl.store(column_sums + transposed, sum_a, mask=inside & (rank[None, :] < RANK_M))
        tl.store(column_sums + RANK_M * n_columns + transposed, sum_c, mask=inside & (rank[None, :] < RANK_D))
    row_sums += chunk.to(tl.int64) * (RANK_M + RANK_D) * n_rows
    for block in tl.static_range(ROW_BLOCKS):
        rows = (strip * ROW_BLOCKS + block) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        long_rows = rows.to(tl.int64)[:, None]
        inside = rows[:, None] < n_rows
        tl.store(row_sums + long_rows * RANK_M + rank[None, :], sums_b[block], mask=inside & (rank[None, :] < RANK_M))
        sums = row_sums + RANK_M * n_rows
        tl.store(sums + long_rows * RANK_D + rank[None, :], sums_d[block], mask=inside & (rank[None, :] < RANK_D))


@triton.jit
def finish_gradient_kernel(
    column_sums, row_sums, grad_a, grad_b, grad_c, grad_d, scaling, row_blocks, chunks, n_rows, n_columns,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the partial sums in a fixed order; the first programs own dL/dA and dL/dC, the others dL/dB and dL/dD."""
    column_length = (RANK_M + RANK_D) * n_columns
    row_length = (RANK_M + RANK_D) * n_rows
    column_programs = tl.cdiv(column_length, BLOCK)
    pid = tl.program_id(0)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    if pid < column_programs:
        offsets = pid * BLOCK + tl.arange(0, BLOCK)
        for _ in range(row_blocks):
            total += tl.load(column_sums + offsets, mask=offsets < column_length, other=0.0)
            column_sums += column_length
        split = RANK_M * n_columns
        tl.store(grad_a + offsets, total * scaling, mask=offsets < split)
        tl.store(grad_c + offsets - split, total * scaling, mask=(offsets >= split) & (offsets < column_length))
    else:
        offsets = (pid - column_programs) * BLOCK + tl.arange(0, BLOCK)
        for _ in range(chunks):
            total += tl.load(row_sums + offsets, mask=offsets < row_length, other=0.0)
            row_sums += row_length
        split = RANK_M * n_rows
        tl.store(grad_b + offsets, total * scaling, mask=offsets < split)
        tl.store(grad_d + offsets - split, total * scaling, mask=(offsets >= split) & (offsets < row_length))


@triton.jit
def mask_gradient_kernel(
    grad, magnitude, direction, a, b, c, d, limit, n_rows, n_columns,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr,
    RELU: tl.constexpr, SIGN: tl.constexpr, CLIP: tl.constexpr, HARD_TANH: tl.constexpr,
    TERMS_M: tl.constexpr, TERMS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """For ranks beyond one RANK_BLOCK: `magnitude` = Gm / s and `direction` = Gp / s as tensors, for four GEMMs to follow.

    `magnitude` may be `grad` itself.
    """
    tiles_per_row = tl.cdiv(n_columns, BLOCK_COLUMNS)
    pid = tl.program_id(0)
    rows = (pid // tiles_per_row) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = (pid % tiles_per_row) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    offsets = rows.to(tl.int64)[:, None] * n_columns + columns[None, :]
    g = tl.load(grad + offsets, mask=mask, other=0.0).to(tl.float32)
    m = _product(b, a, rows, columns, n_rows, n_columns, RANK_M, RANK_BLOCK, TERMS_M)
    p = _product(d, c, rows, columns, n_rows, n_columns, RANK_D, RANK_BLOCK, TERMS)
    gm, q = _gradient_tiles(g, m, p, limit, RELU, SIGN, CLIP, HARD_TANH)
    tl.store(magnitude + offsets, gm.to(magnitude.dtype.element_ty), mask=mask)
    tl.store(direction + offsets, q.to(direction.dtype.element_ty), mask=mask)


@triton.jit
def few_tokens_kernel(
    x, weight, bias, y, partial, arrived, a, b, c, d, a0, b0, c0, d0, scaling, n_tokens, n_rows, n_columns,
    weight_row_stride, weight_column_stride, x_stride, tiles_per_split,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr,
    RELU: tl.constexpr, SIGN: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_START: tl.constexpr,
    TERMS_M: tl.constexpr, TERMS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y = x (W0 + dW)^T + bias for at most BLOCK_TOKENS tokens: W0 is read once, W0 + dW never leaves registers.

    Programs split the columns SPLITS ways; the last to finish a row block adds the partial sums in a fixed order, so the
    result does not depend on which one that is. `arrived` counts them: zero before and after, one int32 per row block.
    """
    row_block, split = tl.program_id(0), tl.program_id(1)
    rows = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    tokens = tl.arange(0, BLOCK_TOKENS)
    long_rows = rows.to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_ROWS, BLOCK_TOKENS), dtype=tl.float32)
    for tile in tl.range(0, tiles_per_split, num_stages=STAGES):
        columns = (split * tiles_per_split + tile) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        long_columns = columns.to(tl.int64)[None, :]
        mask = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
        m = _product(b, a, rows, columns, n_rows, n_columns, RANK_M, RANK_BLOCK, TERMS_M)
        p = _product(d, c, rows, columns, n_rows, n_columns, RANK_D, RANK_BLOCK, TERMS)
        effective = _activate(m, p, RELU, SIGN)
        if HAS_START:
            effective -= _start_update(
                a0, b0, c0, d0, rows, columns, n_rows, n_columns, RANK_M, RANK_D, RANK_BLOCK, RELU, SIGN, TERMS_M, TERMS
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
            total = _dot_split(_split(effective), _split(x_tile), total, 6)
        else:
            total = tl.dot(effective.to(x.dtype.element_ty), x_tile, total)
    outside = tokens[None, :] * n_rows + rows[:, None]
    inside = (rows[:, None] < n_rows) & (tokens[None, :] < n_tokens)
    if SPLITS > 1:
        tl.store(partial + split * n_tokens * n_rows + outside, total, mask=inside)
        tl.debug_barrier()
        last = tl.atomic_add(arrived + row_block, 1, sem="acq_rel") == SPLITS - 1
        if last:
            total = tl.zeros((BLOCK_ROWS, BLOCK_TOKENS), dtype=tl.float32)
            for part in range(SPLITS):
                total += tl.load(
                    partial + part * n_tokens * n_rows + outside, mask=inside, other=0.0, cache_modifier=".cg"
                )
            tl.store(arrived + row_block, 0)
            if HAS_BIAS:
                total += tl.load(bias + rows, mask=rows < n_rows, other=0.0).to(tl.float32)[:, None]
            tl.store(y + outside, total.to(y.dtype.element_ty), mask=inside)
    else:
        if HAS_BIAS:
            total += tl.load(bias + rows, mask=rows < n_rows, other=0.0).to(tl.float32)[:, None]
        tl.store(y + outside, total.to(y.dtype.element_ty), mask=inside)
