"""Factors in the form the Triton kernels read: cut into bf16 parts once for large weights, as they are for small ones."""

from __future__ import annotations

from typing import NamedTuple


import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dual_lora.kernels.launch import cdiv, launch, rank_block
from dual_lora.kernels.triton_products import pack_factors_kernel

Factors = tuple[Tensor, Tensor, Tensor, Tensor]

# Rows and columns are padded to this, a multiple of what any program covers, so that tiles load parts without a mask.
PADDING = 256
# Weights from this many elements on are worth the launch that packs their factors.
PACK_ELEMENTS = 2**21
PACK_BLOCK, PACK_WARPS = 64, 4


class Prepared(NamedTuple):
    """What a kernel gets: the factors (packed bf16 parts or contiguous float32), their ranks, and the padded sizes."""

    factors: Factors
    ranks: tuple[int, int]
    rows_padded: int
    columns_padded: int
    packed: bool

    @property
    def constants(self) -> dict[str, int | bool]:
        """The compile-time constants that describe the factors."""
        magnitude, direction = self.ranks
        block = rank_block(magnitude, direction)
        return {"RANK_M": magnitude, "RANK_D": direction, "RANK_BLOCK": block, "PACKED": self.packed}


def prepare(factors: Factors, *, reuse: bool = False) -> Prepared:
    """The factors of one layer for its kernels.

    With `reuse` (no gradient is recorded: generation, validation) the parts are kept until a factor changes; they take
    1.5 times the factors' memory, and W0 + dW is still formed anew in every call.
    """
    a, b, c, d = factors
    ranks, rows, columns = (a.shape[0], c.shape[0]), b.shape[0], a.shape[1]
    if not reuse and rows * columns < PACK_ELEMENTS:
        a, b, c, d = (f.to(torch.float32).contiguous() for f in factors)
        return Prepared((a, b, c, d), ranks, 0, 0, False)
    if not reuse or any(f.is_inference() for f in factors):
        return _pack(factors)
    state = tuple(f._version for f in factors), tuple(f.data_ptr() for f in factors)
    kept = _kept.get(a)
    if kept is None or kept[0] != state:
        kept = (state, _pack(factors))
        _kept[a] = kept
    return kept[1]


_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _pack(factors: Factors) -> Prepared:
    a, b, c, d = (f.to(torch.float32).contiguous() for f in factors)
    ranks, rows, columns = (a.shape[0], c.shape[0]), b.shape[0], a.shape[1]
    block = rank_block(*ranks)
    rows_padded, columns_padded = cdiv(rows, PADDING) * PADDING, cdiv(columns, PADDING) * PADDING
    sizes = [3 * cdiv(r, block) * block * n for r in ranks for n in (columns_padded, rows_padded)]
    parts = torch.empty(sum(sizes), dtype=torch.bfloat16, device=a.device).split(sizes)
    launch(
        pack_factors_kernel,
        ((columns_padded + rows_padded) // PACK_BLOCK, 1, 1),
        (a, b, c, d, *parts, rows, columns, rows_padded, columns_padded),
        {"RANK_M": ranks[0], "RANK_D": ranks[1], "RANK_BLOCK": block, "BLOCK": PACK_BLOCK},
        PACK_WARPS,
    )
    return Prepared((parts[0], parts[1], parts[2], parts[3]), ranks, rows_padded, columns_padded, True)
