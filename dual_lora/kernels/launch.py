"""Tile sizes and cheap launches of the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


TILES = {
    "build": Tile(64, 64, 4),
    "reduce": Tile(64, 64, 4, stages=2, row_blocks=2),
    "reduce_and_rebuild": Tile(64, 64, 4, stages=2),
    "reduce_wide": Tile(64, 64, 4, stages=1),
    "mask": Tile(64, 64, 4),
    "few_tokens": Tile(64, 64, 4, stages=3),
    "few_tokens_wide": Tile(64, 64, 4, stages=1),  # ranks beyond one block: the parts of three stages do not fit
}
FINISH_BLOCK, FINISH_WARPS = 256, 4
PACK_BLOCK, PACK_WARPS = 64, 4
# Programs that a reduction or a few-token product is cut into, per multiprocessor.
REDUCE_PROGRAMS, FEW_TOKEN_PROGRAMS = 8, 4
# Up to here one kernel that reads W0 once beats building W0 + dW and calling a GEMM.
FEW_TOKENS = 64


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


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def rank_block(ranks: tuple[int, int]) -> int:
    """The block that ranks are padded to multiples of."""
    return SMALL_RANK_BLOCK if max(ranks) <= SMALL_RANK_BLOCK else RANK_BLOCK


def multiprocessors(device: int) -> int:
    """Streaming multiprocessors of a CUDA device; 1 for the interpreter (-1)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device >= 0 else 1
