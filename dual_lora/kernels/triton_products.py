"""Triton functions that every kernel shares: float32-accurate products of factors on bf16 tensor cores.

M = BA and P = DC are formed by `dot_split` only, with the same rank blocks in the same order, so a sign of P is the
same number wherever it is computed on one device.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def number(given, place, IN_MEMORY: tl.constexpr):
    """A kernel's number: `given` itself, or with IN_MEMORY the one `place` numbers after the address `given`."""
    if IN_MEMORY:
        return tl.load(given + place)
    else:
        return given


@triton.jit
def split(value):
    """Three bf16 numbers whose sum is the float32 `value` to 2^-24 of it."""
    high = value.to(tl.bfloat16)
    rest = value - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def dot_split(left, right, result):
    """result + left @ right on tensor cores, from operands that `split` cut into three bf16 parts.

    Six products, smallest first; what is left out is 2^-23 of |left| |right| at worst, about what float32 rounds away.
    (Against tl.dot's tf32x3: the same number of tensor-core instructions, operands that need no transposition in shared
    memory and can be cut once per layer, and no pass over the result for NaN.)
    """
    result = tl.dot(left[1], right[1], result)
    result = tl.dot(left[2], right[0], result)
    result = tl.dot(left[0], right[2], result)
    result = tl.dot(left[1], right[0], result)
    result = tl.dot(left[0], right[1], result)
    return tl.dot(left[0], right[0], result)


@triton.jit
def fence(FENCE: tl.constexpr):
    """Order tensor-core instructions after copies into what they read, where `tiles.lacks_fence` says so."""
    if FENCE:
        tl.inline_asm_elementwise(
            "fence.proxy.async.shared::cta; mov.b32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def left_tile(left, rows, n_rows, begin, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr):
    k = begin + tl.arange(0, RANK_BLOCK)
    mask = (rows[:, None] < n_rows) & (k[None, :] < RANK)
    return tl.load(left + rows.to(tl.int64)[:, None] * RANK + k[None, :], mask=mask, other=0.0)


@triton.jit
def right_tile(right, columns, n_columns, begin, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr):
    k = begin + tl.arange(0, RANK_BLOCK)
    mask = (k[:, None] < RANK) & (columns[None, :] < n_columns)
    return tl.load(right + k.to(tl.int64)[:, None] * n_columns + columns[None, :], mask=mask, other=0.0)


@triton.jit
def left_parts(
    left, rows, n_rows, rows_padded, begin, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr, PACKED: tl.constexpr
):
    """(rows, RANK_BLOCK) of a left factor in three bf16 parts: read as such if PACKED, else cut here."""
    if PACKED:
        padded: tl.constexpr = (RANK + RANK_BLOCK - 1) // RANK_BLOCK * RANK_BLOCK
        pointers = left + rows[:, None] * padded + (begin + tl.arange(0, RANK_BLOCK))[None, :]
        part = rows_padded * padded
        return tl.load(pointers), tl.load(pointers + part), tl.load(pointers + 2 * part)
    else:
        return split(left_tile(left, rows, n_rows, begin, RANK, RANK_BLOCK))


@triton.jit
def right_parts(
    right, columns, n_columns, columns_padded, begin, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr, PACKED: tl.constexpr
):
    """(RANK_BLOCK, columns) of a right factor in three bf16 parts: read as such if PACKED, else cut here."""
    if PACKED:
        padded: tl.constexpr = (RANK + RANK_BLOCK - 1) // RANK_BLOCK * RANK_BLOCK
        pointers = right + (begin + tl.arange(0, RANK_BLOCK))[:, None] * columns_padded + columns[None, :]
        part = columns_padded * padded
        return tl.load(pointers), tl.load(pointers + part), tl.load(pointers + 2 * part)
    else:
        return split(right_tile(right, columns, n_columns, begin, RANK, RANK_BLOCK))


@triton.jit
def product(
    left, right, rows, columns, n_rows, n_columns, rows_padded, columns_padded,
    RANK: tl.constexpr, RANK_BLOCK: tl.constexpr, PACKED: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """One tile of left @ right in float32: (len(rows), len(columns)); left (n_rows, RANK), right (RANK, n_columns)."""
    result = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
    for begin in tl.range(0, RANK, RANK_BLOCK):
        of_left = left_parts(left, rows, n_rows, rows_padded, begin, RANK, RANK_BLOCK, PACKED)
        of_right = right_parts(right, columns, n_columns, columns_padded, begin, RANK, RANK_BLOCK, PACKED)
        fence(FENCE)
        result = dot_split(of_left, of_right, result)
    return result


@triton.jit
def pack_factors_kernel(
    a, b, c, d, packed_a, packed_b, packed_c, packed_d, n_rows, n_columns, rows_padded, columns_padded,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Cut the four factors into bf16 parts once, padded with zeros, so that no tile of a large weight has to.

    Layouts: A and C as (3, padded rank, columns_padded), B and D as (3, rows_padded, padded rank).
    """
    pid = tl.program_id(0)
    column_programs = columns_padded // BLOCK
    if pid < column_programs:
        columns = pid * BLOCK + tl.arange(0, BLOCK)
        _pack_right(a, packed_a, columns, n_columns, columns_padded, RANK_M, RANK_BLOCK)
        _pack_right(c, packed_c, columns, n_columns, columns_padded, RANK_D, RANK_BLOCK)
    else:
        rows = (pid - column_programs) * BLOCK + tl.arange(0, BLOCK)
        _pack_left(b, packed_b, rows, n_rows, rows_padded, RANK_M, RANK_BLOCK)
        _pack_left(d, packed_d, rows, n_rows, rows_padded, RANK_D, RANK_BLOCK)


@triton.jit
def _pack_right(right, packed, columns, n_columns, columns_padded, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr):
    padded: tl.constexpr = (RANK + RANK_BLOCK - 1) // RANK_BLOCK * RANK_BLOCK
    for begin in tl.static_range(0, RANK, RANK_BLOCK):
        parts = split(right_tile(right, columns, n_columns, begin, RANK, RANK_BLOCK))
        pointers = packed + (begin + tl.arange(0, RANK_BLOCK))[:, None] * columns_padded + columns[None, :]
        store_parts(pointers, parts, columns_padded * padded)


@triton.jit
def _pack_left(left, packed, rows, n_rows, rows_padded, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr):
    padded: tl.constexpr = (RANK + RANK_BLOCK - 1) // RANK_BLOCK * RANK_BLOCK
    for begin in tl.static_range(0, RANK, RANK_BLOCK):
        parts = split(left_tile(left, rows, n_rows, begin, RANK, RANK_BLOCK))
        pointers = packed + rows[:, None] * padded + (begin + tl.arange(0, RANK_BLOCK))[None, :]
        store_parts(pointers, parts, rows_padded * padded)


@triton.jit
def store_parts(pointers, parts, distance):
    tl.store(pointers, parts[0])
    tl.store(pointers + distance, parts[1])
    tl.store(pointers + 2 * distance, parts[2])


@triton.jit
def activate(m, p, RELU: tl.constexpr, SIGN: tl.constexpr):
    """U(m) * V(p), with Sign(0) = -1."""
    if RELU:
        m = tl.maximum(m, 0.0)
    if SIGN:
        return tl.where(p > 0.0, m, -m)
    return m * p


@triton.jit
def start_update(
    a0, b0, c0, d0, rows, columns, n_rows, n_columns,
    RANK_M: tl.constexpr, RANK_D: tl.constexpr, RANK_BLOCK: tl.constexpr, RELU: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """One tile of U(B0 A0) V(D0 C0), for `subtract_start`; its factors are never packed."""
    m = product(b0, a0, rows, columns, n_rows, n_columns, 0, 0, RANK_M, RANK_BLOCK, False, False)
    p = product(d0, c0, rows, columns, n_rows, n_columns, 0, 0, RANK_D, RANK_BLOCK, False, False)
    return activate(m, p, RELU, SIGN)
