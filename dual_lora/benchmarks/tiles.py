"""Try tile sizes of the Triton kernels: results/benchmarks/kernels_tiles.json, the measurement behind `tiles.TILES`.

    python run.py bench tiles

Each point is compiled first, in parallel, and timed after that, alone on the GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from dual_lora.benchmarks import timing
from dual_lora.benchmarks.kernels import LAYERS, MANY, SMOKE, UP, frozen, make_layer, time_gpu
from dual_lora.kernels.tiles import Tile


def sweep_runs() -> dict[str, tuple[str, str, Callable[[], Any]]]:
    """What this script times: the tile's name, the name of its number of programs, and the call."""
    from dual_lora.kernels import fused
    from dual_lora.kernels.packing import prepare
    from dual_lora.kernels.spec import Update, update_spec

    layer = make_layer(*(LAYERS["tiny"] if SMOKE else UP), 16, MANY)
    weight = layer["weight"]
    other, g = torch.empty_like(weight), layer["grad"].t() @ layer["x"].detach()
    operands = prepare(Update(frozen(layer["factors"]), None, 0.5, update_spec()))
    small = make_layer(*(LAYERS["tiny"] if SMOKE else (4096, 4096)), 16, 16)
    small_update, small_x = Update(frozen(small["factors"]), None, 0.5, update_spec()), small["x"].detach()
    return {
        "build": ("build", "", lambda: fused.build(weight, other, operands)),
        "reduce": (
            "reduce", "REDUCE_PROGRAMS",
            lambda: fused.reduce(g, None, operands, rebuild=False),
        ),
        "reduce_and_rebuild": (
            "reduce_and_rebuild", "REDUCE_PROGRAMS",
            lambda: fused.reduce(g, weight, operands, rebuild=True),
        ),
        "few_tokens": (
            "few_tokens", "FEW_TOKEN_PROGRAMS",
            lambda: fused.forward(small_x, small["weight"], None, small_update),
        ),
    }  # fmt: skip


def sweep_part(part: int, parts: int, milliseconds: int) -> list[tuple[str, dict[str, Any]]]:
    """Time every `parts`-th point of the sweep; with 0 milliseconds only compile it, into Triton's cache on disk."""
    from triton.runtime.errors import OutOfResources

    from dual_lora.kernels import tiles

    points = [(name, *run, *point) for name, run in sweep_runs().items() for point in _tried(run[0])]
    rows = []
    for name, key, programs, run, tile, count in points[part::parts]:
        row: dict[str, Any] = {"tile": vars(tile), "programs_per_multiprocessor": count}
        number = mock.patch.object(tiles, programs, count) if programs else nullcontext()
        with mock.patch.dict(tiles.TILES, {key: tile}), number:
            try:
                run()
                if not SMOKE:
                    torch.cuda.synchronize()
                if milliseconds:
                    row |= time_gpu(run, milliseconds)
            except OutOfResources as error:  # a tile may not fit in shared memory: that is a result too
                row["error"] = type(error).__name__
        rows.append((name, row))
    return rows


def sweep(milliseconds: int = 20, workers: int = 14) -> dict[str, list[dict[str, Any]]]:
    """Every tile size tried for each kernel on the up projection (few tokens: on q), best first; failures kept."""
    if not SMOKE:  # the interpreter compiles nothing
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            pool.starmap(sweep_part, [(part, workers, 0) for part in range(workers)])
    results: dict[str, list[dict[str, Any]]] = {}
    for name, row in sweep_part(0, 1, milliseconds):
        results.setdefault(name, []).append(row)
    for rows in results.values():
        rows.sort(key=lambda row: row.get("median_ms", float("inf")))
    return results


def _tried(key: str) -> list[tuple[Any, int]]:
    return list(sweep_points(key))[: 2 if SMOKE else None]


def sweep_points(key: str) -> Iterator[tuple[Any, int]]:
    """Tile sizes and programs per multiprocessor that this script tries for the kernel `key`."""
    if key == "build":
        for tile in (Tile(64, 64, 4), Tile(64, 128, 4), Tile(128, 64, 8)):
            yield tile, 0
            for steps, stages in ((4, 1), (4, 2), (16, 2), (16, 3)):
                yield replace(tile, steps=steps, stages=stages), 0
        for tile in (Tile(64, 32, 4), Tile(64, 64, 8)):
            yield replace(tile, steps=16, stages=3), 0
    elif key.startswith("reduce"):
        for tile in (Tile(64, 64, 4), Tile(128, 64, 8)):
            for row_blocks, stages in ((1, 1), (1, 2), (1, 3), (2, 2)):
                yield replace(tile, stages=stages, row_blocks=row_blocks), 8
        for tile in (Tile(64, 32, 4, stages=3), Tile(64, 32, 4, stages=4), Tile(64, 64, 8, stages=3)):
            yield tile, 8
        yield Tile(64, 64, 4, stages=2), 4
        yield Tile(64, 64, 4, stages=2), 12
    else:
        for tile in (Tile(64, 64, 4), Tile(64, 128, 4), Tile(128, 64, 8)):
            for stages in (3, 4):
                yield replace(tile, stages=stages), 4
        yield Tile(64, 64, 4, stages=3), 6
        yield Tile(64, 64, 4, stages=3), 8


def run(options: argparse.Namespace) -> None:
    """Try every tile and write the result file."""
    results = {"environment": timing.environment("cpu" if SMOKE else "cuda"), "tiles": sweep()}
    timing.write(options.output, "kernels_tiles", results)
