"""Tensor cores read operands that asynchronous copies have brought: compiled for Hopper here, which needs no GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from packaging.version import Version

from dual_lora.kernels.spec import update_spec

ROWS, COLUMNS = 11008, 4096  # packed
ANY, OWN = "fence.proxy.async", "fence.proxy.async.shared::cta; mov"
pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
    pytest.mark.skipif(find_spec("triton") is None and sys.platform != "linux", reason="Triton is for Linux"),
]


@pytest.fixture(autouse=True)
def plans_made_anew() -> Iterator[None]:
    """They are kept for the process, and hold what these tests patch."""
    from dual_lora.kernels import plans, tiles

    kept = (plans.build, plans.reduction, plans.mask, plans.few_tokens, tiles.lacks_fence)
    for made in kept:
        made.cache_clear()
    yield
    for made in kept:
        made.cache_clear()


def launches(rank: int) -> Iterator[tuple[Any, dict[str, str]]]:
    """Yield each kernel's launch for a packed bfloat16 layer, and the types of its pointers."""
    from dual_lora.kernels import plans, tiles

    spec = update_spec()
    geometry = plans.Geometry(-1, ROWS, COLUMNS, (rank, rank), (ROWS, COLUMNS), spec, has_start=False)
    strides, half = (COLUMNS, 1), torch.bfloat16
    factors = dict.fromkeys("abcd", "bf16")
    weights = {**factors, **dict.fromkeys(("weight", "out", "grad", "magnitude", "direction", "x", "y"), "bf16")}
    types = {**weights, "sums": "fp32", "partial": "fp32", "arrived": "i32"}
    yield plans.build(geometry, (half, half), strides, strides, tiles.tile_for("build", -1)), types
    if rank <= tiles.RANK_BLOCK:
        tile = tiles.tile_for("reduce_and_rebuild" if rank <= tiles.SMALL_RANK_BLOCK else "reduce_wide", -1)
        yield plans.reduction(geometry, (half, half), strides, True, tile, 8).reduce, types
    else:
        yield plans.mask(geometry, half), types
    tile = tiles.tile_for("few_tokens" if rank <= tiles.RANK_BLOCK else "few_tokens_wide", -1)
    yield plans.few_tokens(geometry, (half, half, None), strides, 8, COLUMNS, tile, 4).launch, types


def compile_for_hopper(launch: Any, types: dict[str, str]) -> str:
    """Return the PTX, specialized as a call with aligned tensors would be."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    floats = [name for name in names if name in ("scaling", "limit")]
    first = names.index(floats[-1]) + 1
    integers = dict(zip(names[first:], launch.integers, strict=False))
    # The quick way passes all of these by position.
    assert names[first:] == [*integers, *launch.constants]
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(names):
        if name in floats:
            signature[name] = "fp32"
        elif name in types and place < first:
            signature[name] = f"*{types[name]}"
        elif integers.get(name, 1) != 1:
            signature[name] = "i32"
        else:  # a constant, a one, or a pointer to nothing
            signature[name] = "constexpr"
            constants[(place,)] = {**launch.constants, **integers}.get(name)
        if signature[name].startswith("*") or (signature[name] == "i32" and integers[name] % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


def without_fence(ptx: str, mark: str) -> tuple[int, int]:
    """Return how many products of factors follow a wait for copies with no `mark` between, and how many there are."""
    fenced, bare, found = True, 0, 0
    for line in ptx.splitlines():
        if "cp.async.wait_group" in line:
            fenced = False
        elif mark in line:
            fenced = True
        elif "wgmma.mma_async" in line and "m64n64k16" in line:  # other products have fewer columns
            found, bare = found + 1, bare + (not fenced)
    return bare, found


@pytest.mark.parametrize("fence", [False, True], ids=["own fence off", "own fence on"])
@pytest.mark.parametrize("rank", [16, 40])
def test_tensor_cores_wait_for_copies(rank: int, fence: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    from dual_lora.kernels import tiles

    with monkeypatch.context() as patched:
        patched.setattr(tiles, "lacks_fence", lambda _: fence)
        made_here = list(launches(rank))
    counts = {}
    for made, types in made_here:
        ptx = compile_for_hopper(made, types)
        counts[made.kernel.fn.__name__] = without_fence(ptx, OWN if fence else ANY)
        assert made.constants["FENCE"] is fence
        assert (OWN in ptx) is fence
    lacking = not fence and Version(triton.__version__) < Version("3.7")  # as `lacks_fence` says
    assert all((bare > 0) is lacking and found > 0 for bare, found in counts.values()), counts


@pytest.mark.parametrize(
    ("triton_version", "capability", "cuda", "lacks"),
    [
        ("3.6.0", (9, 0), "13.0", True),
        ("3.6.0+git1234", (9, 0), "12.8", True),
        ("3.6.0", (10, 0), "13.0", False),  # its pipelines take no fence of ours
        ("3.7.1", (9, 0), "13.0", False),
        ("4.0.0", (9, 0), "13.0", False),
        ("3.6.0", (8, 0), "13.0", False),
        ("3.6.0", (9, 4), None, False),  # AMD
    ],
)
def test_where_a_fence_is_lacking(
    triton_version: str, capability: tuple[int, int], cuda: str | None, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    from dual_lora.kernels.tiles import lacks_fence

    monkeypatch.setattr(triton, "__version__", triton_version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert lacks_fence(0) is lacks
    assert lacks_fence(-1) is False
