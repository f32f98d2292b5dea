"""Tile sizes, launch geometry and cheap launches of the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dual_lora.kernels.rule import UpdateRule

# One padded rank block: the least that a bf16 tensor-core instruction takes, and the most that still leaves the reduction
# its accumulators in registers.
SMALL_RANK_BLOCK, RANK_BLOCK = 16, 32


@dataclass(frozen=True)
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


# TILES: placeholder until measured
TILES = {
    "build": Tile(64, 64, 4),
    "reduce": Tile(64, 64, 4, stages=2, row_blocks=2),
    "reduce_wide": Tile(64, 64, 4, stages=1),
    "mask": Tile(64, 64, 4),
    "few_tokens": Tile(64, 64, 4, stages=3),
}
FINISH_BLOCK, FINISH_WARPS = 256, 4
# Programs that a reduction or a few-token product is cut into, per multiprocessor.
REDUCE_PROGRAMS, FEW_TOKEN_PROGRAMS = 4, 4
# Up to here one kernel that reads W0 once beats building W0 + dW and calling a GEMM.
FEW_TOKENS = 64

Key = tuple[Any, ...]
_compiled: dict[Key, Any] = {}


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def rank_block(*ranks: int) -> int:
    """The block that ranks are padded to multiples of."""
    return SMALL_RANK_BLOCK if max(ranks) <= SMALL_RANK_BLOCK else RANK_BLOCK


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], warps: int
) -> None:
    """Run `kernel` on the current device.

    After the first launch of a geometry the compiled kernel is called directly: Triton's own binding of some twenty
    arguments would cost more than the kernel on small layers. The cache key holds everything that Triton specializes on:
    dtypes, integer arguments, constants, and the alignment of every pointer.
    """
    aligned = 0
    key: list[Any] = [kernel, warps, *constants.values()]
    device = None
    for argument in arguments:
        if isinstance(argument, Tensor):
            aligned |= argument.data_ptr()
            key.append(argument.dtype)
            device = argument.device
        else:
            key.append(None if isinstance(argument, float) else argument)
    if aligned & 15 or device is None or device.type != "cuda":
        kernel[grid](*arguments, **constants, num_warps=warps)
        return
    key.append(device.index)
    compiled = _compiled.get(tuple(key))
    if compiled is None:
        _compiled[tuple(key)] = kernel[grid](*arguments, **constants, num_warps=warps)
    else:
        compiled[grid](*arguments, *constants.values())


def rule_constants(rule: UpdateRule) -> dict[str, bool]:
    """The kernels' compile-time switches for the activations."""
    return {"RELU": rule.magnitude_activation == "relu", "SIGN": rule.direction_activation == "sign"}


def estimator_constants(rule: UpdateRule) -> dict[str, bool]:
    """The kernels' compile-time switches for the straight-through estimator."""
    sign = rule.direction_activation == "sign"
    return {"CLIP": sign and rule.ste == "clipped_gradient", "HARD_TANH": sign and rule.ste == "hard_tanh"}


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 1 for the interpreter."""
    if device.type != "cuda":
        return 1
    count = _multiprocessors.get(device.index)
    if count is None:
        count = torch.cuda.get_device_properties(device).multi_processor_count
        _multiprocessors[device.index] = count
    return count


_multiprocessors: dict[int | None, int] = {}
