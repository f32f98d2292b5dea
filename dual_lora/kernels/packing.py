"""Factors as the Triton kernels read them: cut into bf16 parts once for large weights, unchanged for small ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dual_lora.kernels import kept, plans
from dual_lora.kernels.launch import cdiv, rank_block

Factors = tuple[Tensor, Tensor, Tensor, Tensor]

# Rows and columns are padded to this, a multiple of what any program covers, so that tiles load parts without a mask.
PADDING = 256
# Weights from this many elements on are worth the launch that packs their factors.
PACK_ELEMENTS = 2**21


class Prepared(NamedTuple):
    """What a kernel gets: factors as packed bf16 parts with their padded (rows, columns), or float32 and (0, 0)."""

    factors: Factors
    padded: tuple[int, int]


def prepare(factors: Factors) -> Prepared:
    """The factors of one layer for its kernels, made anew in every call, or once inside `kept.packed_once`.

    Nothing else is kept between calls, not even while no gradient is recorded: no cheap sign tells that a factor
    changed. `torch.optim.AdamW(fused=True)`, the Trainer's default, changes parameters without counting up their
    `_version`, as does every write through `.data` (averages of weights, DeepSpeed).
    """
    a, b, _, _ = factors
    if b.shape[0] * a.shape[1] < PACK_ELEMENTS:
        return Prepared(contiguous(factors), (0, 0))
    known: Prepared | None = kept.get(factors)
    if known is None:
        known = _pack(factors)
        kept.put(factors, known)
    return known


def contiguous(factors: Factors) -> Factors:
    """The factors in contiguous float32, themselves if they are."""
    if all(f.dtype is torch.float32 and f.is_contiguous() for f in factors):
        return factors
    a, b, c, d = (f.to(torch.float32).contiguous() for f in factors)
    return a, b, c, d


def _pack(factors: Factors) -> Prepared:
    a, b, c, d = contiguous(factors)
    ranks, rows, columns = (a.shape[0], c.shape[0]), b.shape[0], a.shape[1]
    block = rank_block(ranks)
    padded = cdiv(rows, PADDING) * PADDING, cdiv(columns, PADDING) * PADDING
    sizes = [3 * cdiv(r, block) * block * n for r in ranks for n in (padded[1], padded[0])]
    parts = torch.empty(sum(sizes), dtype=torch.bfloat16, device=a.device).split(sizes)
    plans.pack(a.get_device(), rows, columns, ranks, padded)(a.get_device(), (a, b, c, d, *parts))
    return Prepared((parts[0], parts[1], parts[2], parts[3]), padded)
