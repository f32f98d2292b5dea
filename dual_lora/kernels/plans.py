"""Which launch computes what: grid, integers and constants of every kernel, worked out once per geometry."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from dual_lora.kernels import launch, triton_kernels
from dual_lora.kernels.launch import TILES, Launch, Tile, cdiv, rank_block
from dual_lora.kernels.rule import UpdateRule
from dual_lora.kernels.triton_few_tokens import few_tokens_kernel
from dual_lora.kernels.triton_products import pack_factors_kernel

# bf16 parts of a factor in the products that reduce a bf16 G: 1 adds one rounding of the size of G's own.
FACTOR_PARTS = 1
Strides = tuple[int, int]


class Geometry(NamedTuple):
    """What all kernels of one layer depend on. `padded` is (rows, columns) of packed factors, (0, 0) for plain ones."""

    device: int
    rows: int
    columns: int
    ranks: tuple[int, int]
    padded: tuple[int, int]
    rule: UpdateRule
    has_start: bool

    def constants(self) -> dict[str, int | bool]:
        """The compile-time constants that every kernel but `finish` has, in the kernels' order."""
        return {
            "RANK_M": self.ranks[0],
            "RANK_D": self.ranks[1],
            "RANK_BLOCK": rank_block(self.ranks),
            "PACKED": self.padded != (0, 0),
            "FENCE": self.padded != (0, 0) and launch.lacks_fence(self.device),
            "RELU": self.rule.magnitude_activation == "relu",
            "SIGN": self.rule.direction_activation == "sign",
        }

    def estimator_constants(self) -> dict[str, bool]:
        """The compile-time constants of the straight-through estimator."""
        sign = self.rule.direction_activation == "sign"
        return {
            "CLIP": sign and self.rule.ste == "clipped_gradient",
            "HARD_TANH": sign and self.rule.ste == "hard_tanh",
        }


@lru_cache(maxsize=1024)
def build(
    geometry: Geometry,
    dtypes: tuple[torch.dtype | None, torch.dtype],
    weight_strides: Strides | None,
    out_strides: Strides,
    tile: Tile,
) -> Launch:
    """`build_weight_kernel`; `dtypes` are those of weight and out."""
    row_blocks, tiles = cdiv(geometry.rows, tile.rows), cdiv(geometry.columns, tile.columns)
    steps = min(tile.steps, tiles)
    return Launch(
        triton_kernels.build_weight_kernel,
        (cdiv(tiles, steps), row_blocks, 1),
        (geometry.rows, geometry.columns, *geometry.padded, *(weight_strides or (0, 0)), *out_strides, steps),
        {
            **geometry.constants(),
            "HAS_WEIGHT": weight_strides is not None,
            "HAS_START": geometry.has_start,
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLUMNS": tile.columns,
            "STAGES": tile.stages,
        },
        tile.warps,
    )


class Reduction(NamedTuple):
    """Two launches that reduce G, and the number of float32 partial sums between them.

    Partial sums of A and C: r1 + r2 per column and strip of rows, hence 4 (r1 + r2) / 64 bytes per element of the
    weight, or half of that where W0 + dW is rebuilt (strips of 128 rows). Of B and D: r1 + r2 per row and chunk of
    columns, of which there are as many as occupy the card, so their size does not grow with the weight's.
    """

    reduce: Launch
    finish: Launch
    workspace: int


@lru_cache(maxsize=1024)
def reduction(
    geometry: Geometry,
    dtypes: tuple[torch.dtype | None, torch.dtype],
    weight_strides: Strides | None,
    rebuild: bool,
    tile: Tile,
    programs: int,
) -> Reduction:
    """`reduce_gradient_kernel` and `finish_gradient_kernel`; `dtypes` are those of weight and G."""
    rows, columns, ranks = geometry.rows, geometry.columns, sum(geometry.ranks)
    strips = cdiv(rows, tile.rows * tile.row_blocks)
    tiles = cdiv(columns, tile.columns)
    wanted = cdiv(programs * launch.multiprocessors(geometry.device), strips)
    tiles_per_chunk = cdiv(tiles, min(wanted, tiles))
    chunks = cdiv(tiles, tiles_per_chunk)
    column_sums = strips * ranks * columns
    reduce = Launch(
        triton_kernels.reduce_gradient_kernel,
        (chunks, strips, 1),
        (rows, columns, *geometry.padded, *(weight_strides or (0, 0)), tiles_per_chunk, column_sums),
        {
            **geometry.constants(),
            **geometry.estimator_constants(),
            "HAS_WEIGHT": weight_strides is not None,
            "HAS_OUT": rebuild,
            "HAS_START": geometry.has_start,
            "TILE_PARTS": FACTOR_PARTS if dtypes[1] == torch.bfloat16 else 3,
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLUMNS": tile.columns,
            "ROW_BLOCKS": tile.row_blocks,
            "STAGES": tile.stages,
        },
        tile.warps,
    )
    block = launch.FINISH_BLOCK
    finish = Launch(
        triton_kernels.finish_gradient_kernel,
        (cdiv(ranks * columns, block) + cdiv(ranks * rows, block), 1, 1),
        (strips, chunks, rows, columns, column_sums),
        {"RANK_M": geometry.ranks[0], "RANK_D": geometry.ranks[1], "BLOCK": block},
        launch.FINISH_WARPS,
    )
    return Reduction(reduce, finish, column_sums + chunks * ranks * rows)


@lru_cache(maxsize=1024)
def mask(geometry: Geometry, dtype: torch.dtype) -> Launch:
    """`mask_gradient_kernel` for G of `dtype`."""
    tile = TILES["mask"]
    return Launch(
        triton_kernels.mask_gradient_kernel,
        (cdiv(geometry.columns, tile.columns), cdiv(geometry.rows, tile.rows), 1),
        (geometry.rows, geometry.columns, *geometry.padded),
        {
            **geometry.constants(),
            **geometry.estimator_constants(),
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLUMNS": tile.columns,
        },
        tile.warps,
    )


class FewTokens(NamedTuple):
    """One launch, the number of its column splits, and the row blocks that count arrivals."""

    launch: Launch
    splits: int
    row_blocks: int


@lru_cache(maxsize=4096)
def few_tokens(
    geometry: Geometry,
    dtypes: tuple[torch.dtype, torch.dtype | None, torch.dtype | None],
    weight_strides: Strides | None,
    tokens: int,
    x_stride: int,
    tile: Tile,
    programs: int,
) -> FewTokens:
    """`few_tokens_kernel`; `dtypes` are those of x, weight and bias."""
    row_blocks, tiles = cdiv(geometry.rows, tile.rows), cdiv(geometry.columns, tile.columns)
    wanted = cdiv(programs * launch.multiprocessors(geometry.device), row_blocks)
    tiles_per_split = cdiv(tiles, min(wanted, tiles))
    splits = cdiv(tiles, tiles_per_split)
    plan = Launch(
        few_tokens_kernel,
        (row_blocks, splits, 1),
        (
            tokens,
            geometry.rows,
            geometry.columns,
            *geometry.padded,
            *(weight_strides or (0, 0)),
            x_stride,
            tiles_per_split,
        ),
        {
            **geometry.constants(),
            "HAS_WEIGHT": weight_strides is not None,
            "HAS_BIAS": dtypes[2] is not None,
            "HAS_START": geometry.has_start,
            "SPLITS": splits,
            "BLOCK_TOKENS": max(16, 1 << (tokens - 1).bit_length()),
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLUMNS": tile.columns,
            "STAGES": tile.stages,
        },
        tile.warps,
    )
    return FewTokens(plan, splits, row_blocks)


@lru_cache(maxsize=1024)
def pack(device: int, rows: int, columns: int, ranks: tuple[int, int], padded: tuple[int, int]) -> Launch:
    """`pack_factors_kernel` for float32 factors on `device`."""
    constants = {"RANK_M": ranks[0], "RANK_D": ranks[1], "RANK_BLOCK": rank_block(ranks), "BLOCK": launch.PACK_BLOCK}
    grid = (sum(padded) // launch.PACK_BLOCK, 1, 1)
    return Launch(pack_factors_kernel, grid, (rows, columns, *padded), constants, launch.PACK_WARPS)
