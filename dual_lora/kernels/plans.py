"""Which launch computes what: grid, integers and constants of every kernel, worked out once per geometry."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dual_lora.kernels import tiles, triton_kernels
from dual_lora.kernels.spec import UpdateSpec
from dual_lora.kernels.tiles import (
    FINISH_BLOCK,
    FINISH_WARPS,
    PACK_BLOCK,
    PACK_WARPS,
    TILES,
    Tile,
    cdiv,
    multiprocessors,
    rank_block,
)
from dual_lora.kernels.triton_few_tokens import few_tokens_kernel
from dual_lora.kernels.triton_products import pack_factors_kernel

# bf16 parts of a factor in the products that reduce a bf16 G: 1 adds one rounding of the size of G's own.
FACTOR_PARTS = 1
Strides = tuple[int, int]


class Launch:
    """One kernel at one geometry and set of dtypes; a call passes the pointers and the floats.

    Triton binds and inspects some thirty arguments at each launch, which costs more than the kernel itself on a small
    layer. Here that happens at the first call; later ones go to the compiled kernel, unless a pointer is less aligned
    than it was compiled for. The kernels' parameters come in this order: pointers, floats, integers, constants.
    """

    def __init__(
        self, kernel: Any, grid: tuple[int, int, int], integers: tuple[int, ...], constants: dict[str, Any], warps: int
    ) -> None:
        self.kernel, self.grid, self.integers, self.constants, self.warps = kernel, grid, integers, constants, warps
        self._fixed = (*integers, *constants.values())
        self._compiled: Any = None

    def __call__(self, device: int, tensors: tuple[Tensor | None, ...], floats: tuple[float, ...] = ()) -> None:
        """Launch on the current stream of the current CUDA device `device` (-1: Triton's interpreter)."""
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        alignment = 0
        for address in addresses:
            alignment |= address
        compiled = self._compiled
        if compiled is not None and not alignment & 15:
            stream = torch._C._cuda_getCurrentRawStream(device)
            compiled.run(
                *self.grid, stream, compiled.function, compiled.packed_metadata, None, None, None,
                *addresses, *floats, *self._fixed,
            )  # fmt: skip
            return
        compiled = self.kernel[self.grid](*tensors, *floats, *self.integers, **self.constants, num_warps=self.warps)
        if device >= 0 and not alignment & 15:
            self._compiled = compiled


class Geometry(NamedTuple):
    """What all kernels of one layer depend on. `padded` is (rows, columns) of packed factors, (0, 0) for plain ones.

    scaling_in_memory: s and 1 / |s| are read from the device.
    """

    device: int
    rows: int
    columns: int
    ranks: tuple[int, int]
    padded: tuple[int, int]
    spec: UpdateSpec
    has_start: bool
    scaling_in_memory: bool = False

    def constants(self) -> dict[str, int | bool]:
        """The compile-time constants that every kernel but `finish` has, in the kernels' order."""
        return {
            "RANK_M": self.ranks[0],
            "RANK_D": self.ranks[1],
            "RANK_BLOCK": rank_block(self.ranks),
            "PACKED": self.padded != (0, 0),
            "FENCE": self.padded != (0, 0) and tiles.lacks_fence(self.device),
            "RELU": self.spec.magnitude_activation == "relu",
            "SIGN": self.spec.direction_activation == "sign",
            "IN_MEMORY": self.scaling_in_memory,
        }

    def estimator_constants(self) -> dict[str, bool]:
        """The compile-time constants of the straight-through estimator."""
        sign = self.spec.direction_activation == "sign"
        return {
            "CLIP": sign and self.spec.ste == "clipped_gradient",
            "HARD_TANH": sign and self.spec.ste == "hard_tanh",
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
    row_blocks, column_tiles = cdiv(geometry.rows, tile.rows), cdiv(geometry.columns, tile.columns)
    steps = min(tile.steps, column_tiles)
    return Launch(
        triton_kernels.build_weight_kernel,
        (cdiv(column_tiles, steps), row_blocks, 1),
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

    Partial sums of A and C: r1 + r2 per column and strip of rows, so 4 (r1 + r2) / 64 bytes per element of the weight.
    Of B and D: r1 + r2 per row and chunk of columns, of which there are as many as occupy the card, so their size does
    not grow with the weight's.
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
    column_tiles = cdiv(columns, tile.columns)
    wanted = cdiv(programs * multiprocessors(geometry.device), strips)
    tiles_per_chunk = cdiv(column_tiles, min(wanted, column_tiles))
    chunks = cdiv(column_tiles, tiles_per_chunk)
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
    finish = Launch(
        triton_kernels.finish_gradient_kernel,
        (cdiv(ranks * columns, FINISH_BLOCK) + cdiv(ranks * rows, FINISH_BLOCK), 1, 1),
        (strips, chunks, rows, columns, column_sums),
        {
            "RANK_M": geometry.ranks[0],
            "RANK_D": geometry.ranks[1],
            "IN_MEMORY": geometry.scaling_in_memory,
            "BLOCK": FINISH_BLOCK,
        },
        FINISH_WARPS,
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
    row_blocks, column_tiles = cdiv(geometry.rows, tile.rows), cdiv(geometry.columns, tile.columns)
    wanted = cdiv(programs * multiprocessors(geometry.device), row_blocks)
    tiles_per_split = cdiv(column_tiles, min(wanted, column_tiles))
    splits = cdiv(column_tiles, tiles_per_split)
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
    constants = {"RANK_M": ranks[0], "RANK_D": ranks[1], "RANK_BLOCK": rank_block(ranks), "BLOCK": PACK_BLOCK}
    grid = (sum(padded) // PACK_BLOCK, 1, 1)
    return Launch(pack_factors_kernel, grid, (rows, columns, *padded), constants, PACK_WARPS)
