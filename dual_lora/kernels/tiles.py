"""Tile sizes of the Triton kernels, and what a device allows them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

# Ranks are padded to multiples of one block: the least that a bf16 tensor-core instruction takes, or the most that
# still leaves the reduction its sums in registers.
SMALL_RANK_BLOCK, RANK_BLOCK = 16, 32


@dataclass(frozen=True, eq=False)
class Tile:
    """Tile of one kernel: rows x columns of the weight, warps and pipeline stages.

    A program of the reduction owns `row_blocks` tiles of rows, one of the build walks along `steps` tiles of columns.
    """

    rows: int
    columns: int
    warps: int
    stages: int = 1
    row_blocks: int = 1
    steps: int = 1


# Chosen on an H100 at 11008 x 4096, rank 16, bf16 (`run.py bench tiles`); microseconds, best of the rest in brackets.
# results/benchmarks/kernels_tiles.json is of an H200: the same tiles lead. Both reductions have one tile, and with it
# one order of sums: a weight that is kept, not rebuilt, changes no digit. At rank 16 they take up to 140 KiB of shared
# memory (compiled for sm_90), which an A100 (163 KiB) has too; `tile_for` gives cards with less (99 KiB on consumer
# cards) the unpipelined form.
TILES = {
    "build_with_start": Tile(64, 64, 4, stages=1, steps=16),  # twice the factors: 176 KiB with three stages; not swept
    "build": Tile(64, 64, 4, stages=3, steps=16),  # 77 (84: two stages, four steps; 91: one tile per program)
    "reduce": Tile(64, 64, 4, stages=3),  # 143 (159: two blocks of rows, two stages)
    "reduce_and_rebuild": Tile(64, 64, 4, stages=3),  # 208 (201: 128 rows and 8 warps; on the H200 182 against 192)
    # G that is not bf16 is split into three parts, whose pipeline does not fit: 240 KiB with three stages.
    "reduce_three_parts": Tile(64, 64, 4, stages=1),  # not swept
    "reduce_wide": Tile(64, 64, 4, stages=1),  # ranks 17 to 32; not swept
    "mask": Tile(64, 64, 4),  # ranks above 32; not swept
    "few_tokens": Tile(64, 64, 4, stages=4),  # 31 for 4096 x 4096 (33: 128 rows and 8 warps; 35: three stages)
    "few_tokens_wide": Tile(64, 64, 4, stages=1),  # where the parts of three stages do not fit
}
FINISH_BLOCK, FINISH_WARPS = 256, 4
PACK_BLOCK, PACK_WARPS = 64, 4
# Programs that a reduction or a few-token product is cut into, per multiprocessor.
REDUCE_PROGRAMS, FEW_TOKEN_PROGRAMS = 8, 4
# Up to here one kernel that reads W0 once beats building W0 + dW and calling a GEMM (H100, 11008 x 4096: 78 against 120
# microseconds at 32 tokens, 136 against 118 at 64).
FEW_TOKENS = 32


PIPELINED_BYTES = 160 * 1024  # shared memory per program that the pipelined tiles are made for


def tile_for(name: str, device: int) -> Tile:
    """The tile of a kernel on CUDA device `device` (-1: Triton's interpreter)."""
    tile = TILES[name]
    return tile if _pipelines(device) else replace(tile, rows=64, warps=4, stages=1)


@lru_cache(maxsize=64)
def _pipelines(device: int) -> bool:
    return device < 0 or torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= PIPELINED_BYTES


@lru_cache(maxsize=64)
def lacks_fence(device: int) -> bool:
    """Whether kernels for CUDA device `device` must order reads of tensor cores after copies into shared memory.

    Hopper's tensor cores read shared memory through one proxy (PTX ISA, "Proxies"), and asynchronous copies write it
    through another. Triton before 3.7 puts no fence between the two, so operands could be read before they are there.
    Only packed factors are copied this way: other operands pass through registers, where Triton does put one. On
    Blackwell Triton 3.6 cannot pipeline a loop with a fence of ours.
    """
    if device < 0 or torch.version.cuda is None or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) < (3, 7)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def rank_block(ranks: tuple[int, int]) -> int:
    """The block that ranks are padded to multiples of."""
    return SMALL_RANK_BLOCK if max(ranks) <= SMALL_RANK_BLOCK else RANK_BLOCK


def multiprocessors(device: int) -> int:
    """Streaming multiprocessors of a CUDA device; 1 for the interpreter (-1)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device >= 0 else 1
