"""Factors as the Triton kernels read them: cut into bf16 parts once for large weights, unchanged for small ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dual_lora.kernels import factor_cache, plans
from dual_lora.kernels.plans import Geometry
from dual_lora.kernels.spec import Factors, Update
from dual_lora.kernels.tiles import cdiv, rank_block

# Rows and columns are padded to this, a multiple of what any program covers, so that tiles load parts without a mask.
PADDING = 256
# Weights from this many elements on are worth the launch that packs their factors.
PACK_ELEMENTS = 2**21
_NO_START = (None, None, None, None)


class Operands(NamedTuple):
    """What the kernels get of one update, besides weights and gradients.

    `pointers`: A, B, C, D as packed bf16 parts or in float32, then A0, B0, C0, D0 in float32 or None. `in_memory` and
    `loss_scale` as in `Update`.
    """

    pointers: tuple[Tensor | None, ...]
    geometry: Geometry
    scaling: float
    in_memory: Tensor | None
    loss_scale: float


def prepare(update: Update, packed: tuple[Tensor, ...] = ()) -> Operands:
    """The operands of one call, their factors packed in every call, or once inside `factor_cache.packed_once`.

    `packed`: what `packed_factors` returned in the call's forward pass. Nothing else is kept between calls, not even
    while no gradient is recorded: there is no cheap way to tell that a factor changed. `torch.optim.AdamW(fused=True)`,
    the Trainer's default, changes parameters without incrementing their `_version`, as does every write through `.data`
    (averages of weights, DeepSpeed).
    """
    a, b, c, _ = update.factors
    rows, columns, ranks = b.shape[0], a.shape[1], (a.shape[0], c.shape[0])
    if not is_packed(update):
        factors, padded = contiguous(update.factors), (0, 0)
    elif packed:
        factors, padded = (packed[0], packed[1], packed[2], packed[3]), _padded(rows, columns)
    else:
        known: tuple[Factors, tuple[int, int]] | None = factor_cache.get(update.factors)
        if known is None:
            known = _pack(update.factors)
            factor_cache.put(update.factors, known)
        factors, padded = known
    start = update.start
    has_start, reads_scaling = start is not None, update.in_memory is not None
    geometry = Geometry(a.get_device(), rows, columns, ranks, padded, update.spec, has_start, reads_scaling)
    pointers = factors + (_NO_START if start is None else contiguous(start))
    return Operands(pointers, geometry, update.scaling, update.in_memory, update.loss_scale)


def is_packed(update: Update) -> bool:
    """Whether the kernels read the factors of `update` in parts: those of a large weight."""
    a, b, _, _ = update.factors
    return b.shape[0] * a.shape[1] >= PACK_ELEMENTS


def packed_factors(operands: Operands) -> tuple[Tensor, ...]:
    """The four packed factors, for `prepare` in the backward pass; nothing where the kernels read them as they are."""
    a, b, c, d = operands.pointers[:4]
    if operands.geometry.padded == (0, 0) or a is None or b is None or c is None or d is None:
        return ()
    return a, b, c, d


def contiguous(factors: Factors) -> Factors:
    """The factors in contiguous float32, themselves if they are."""
    if all(f.dtype is torch.float32 and f.is_contiguous() for f in factors):
        return factors
    a, b, c, d = (f.to(torch.float32).contiguous() for f in factors)
    return a, b, c, d


def _padded(rows: int, columns: int) -> tuple[int, int]:
    return cdiv(rows, PADDING) * PADDING, cdiv(columns, PADDING) * PADDING


def _pack(factors: Factors) -> tuple[Factors, tuple[int, int]]:
    """The factors as bf16 parts, and the (rows, columns) that these are padded to."""
    a, b, c, d = contiguous(factors)
    ranks, rows, columns = (a.shape[0], c.shape[0]), b.shape[0], a.shape[1]
    block = rank_block(ranks)
    padded = _padded(rows, columns)
    sizes = [3 * cdiv(r, block) * block * n for r in ranks for n in (padded[1], padded[0])]
    parts = torch.empty(sum(sizes), dtype=torch.bfloat16, device=a.device).split(sizes)
    plans.pack(a.get_device(), rows, columns, ranks, padded)(a.get_device(), (a, b, c, d, *parts))
    return (parts[0], parts[1], parts[2], parts[3]), padded
