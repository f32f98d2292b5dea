"""Time one Dual LoRA layer: kernels against copies, layers against LoRA and the GEMM floor, growth of cost, the CPU.

    python scripts/bench_kernels.py                        # on a GPU: results/benchmarks/kernels.json
    python scripts/bench_kernels.py --device cpu           # the CPU target: results/benchmarks/kernels_cpu.json
    python scripts/bench_kernels.py --sweep                # tile sizes: results/benchmarks/kernels_tiles.json

Times are medians with 20 and 80 per cent quantiles. On the GPU every repetition starts with a cold L2 cache.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dual_lora.kernels import dual_lora_linear, reference

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
UP = (11008, 4096)  # LLaMA-7B's up projection: the layer of the targets
LLAMA_7B = {"q": (4096, 4096), "up": UP, "down": (4096, 11008)}
Timing = dict[str, float]


def environment(device: str) -> dict[str, str]:
    """Card or processor and versions, for the result file."""
    info = {"python": platform.python_version(), "torch": torch.__version__}
    if device == "cuda":
        info |= {"card": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda), "triton": version("triton")}
    else:
        info |= {"card": platform.processor() or platform.machine(), "threads": str(torch.get_num_threads())}
    return info


def time_gpu(run: Callable[[], Any], milliseconds: int = 60) -> Timing:
    """Median and 20/80 quantiles of `run` in milliseconds of GPU time, L2 cache cleared before each repetition."""
    import triton

    low, median, high = triton.testing.do_bench(run, warmup=15, rep=milliseconds, quantiles=[0.2, 0.5, 0.8])
    return {"p20_ms": low, "median_ms": median, "p80_ms": high}


def make_factors(out: int, in_: int, rank: int, device: str) -> tuple[torch.Tensor, ...]:
    """Trainable float32 factors A, B, C, D of equal ranks, at the default spread 0.02."""
    shapes = ((rank, in_), (out, rank), (rank, in_), (out, rank))
    return tuple((torch.randn(shape, device=device) * 0.02).requires_grad_() for shape in shapes)


def make_layer(out: int, in_: int, rank: int, tokens: int) -> dict[str, Any]:
    """A bf16 layer on the GPU with its input and the gradient of its output."""
    x = torch.randn(tokens, in_, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(out, in_, device="cuda", dtype=torch.bfloat16) * in_**-0.5
    grad = torch.randn(tokens, out, device="cuda", dtype=torch.bfloat16)
    return {"x": x, "weight": weight, "grad": grad, "factors": make_factors(out, in_, rank, "cuda")}


def bench_parts(out: int, in_: int, rank: int = 16) -> dict[str, Any]:
    """The two kernels of the targets against copies of the same matrix, and the GEMMs around them at 4,096 tokens."""
    from dual_lora.kernels import fused
    from dual_lora.kernels.packing import prepare
    from dual_lora.kernels.rule import UpdateRule

    layer = make_layer(out, in_, rank, 4096)
    x, grad, weight = layer["x"].detach(), layer["grad"], layer["weight"]
    factors = tuple(f.detach() for f in layer["factors"])
    rule, other, g, prepared = UpdateRule(), torch.empty_like(weight), grad.t() @ x, prepare(factors)
    geometry = fused._geometry(factors, prepared, rule, None)
    pack = time_gpu(lambda: prepare(factors))
    copy = time_gpu(lambda: other.copy_(weight))
    build = time_gpu(lambda: fused.build(weight, other, prepare(factors), geometry, 0.5, None))
    reduce = time_gpu(lambda: fused.reduce(g, weight, prepared, geometry, 0.5, None, rebuild=False))
    both = time_gpu(lambda: fused.reduce(g, weight, prepared, geometry, 0.5, None, rebuild=True))
    gemm = time_gpu(lambda: grad.t() @ x)
    read_ms = copy["median_ms"] / 2  # a copy moves the matrix twice
    return {
        "shape": [out, in_], "rank": rank, "copy": copy, "pack": pack, "build": build, "reduce": reduce,
        "reduce_and_rebuild": both,
        "weight_gradient_gemm": gemm, "copy_GB_per_s": 4 * out * in_ / copy["median_ms"] / 1e6,
        "build_over_copy": build["median_ms"] / copy["median_ms"],
        "reduce_over_read": reduce["median_ms"] / read_ms,
        "reduce_and_rebuild_over_bytes": both["median_ms"] / (3 * read_ms),
        "gemm_and_reduce_over_gemm": 1 + reduce["median_ms"] / gemm["median_ms"],
    }  # fmt: skip


def layer_step(layer: dict[str, Any], kind: str, rank: int) -> Callable[[], Any]:
    """Forward and backward of one layer: dual_lora, lora (bf16 factors, PEFT's formula), floor (trainable weight)."""
    x, weight, grad = layer["x"], layer["weight"], layer["grad"]
    if kind == "dual_lora":
        factors = layer["factors"]
        return lambda: torch.autograd.grad(dual_lora_linear(x, weight, None, *factors, 0.5), (x, *factors), grad)
    if kind == "floor":
        trainable = weight.detach().requires_grad_()
        return lambda: torch.autograd.grad(F.linear(x, trainable), (x, trainable), grad)
    a = torch.randn(2 * rank, weight.shape[1], device=x.device, dtype=x.dtype, requires_grad=True)
    b = torch.randn(weight.shape[0], 2 * rank, device=x.device, dtype=x.dtype, requires_grad=True)
    return lambda: torch.autograd.grad(F.linear(x, weight) + F.linear(F.linear(x, a), b) * 2.0, (x, a, b), grad)


def bench_growth(milliseconds: int = 40) -> list[dict[str, Any]]:
    """Forward and backward over tokens, rank and layer size, against LoRA of equal budget and the three-GEMM floor."""
    rows = []
    points = [("tokens", 4096, 4096, 16, t) for t in (128, 512, 1024, 2048, 4096, 8192, 16384)]
    points += [("rank", 4096, 4096, r, 4096) for r in (4, 16, 32, 64, 256)]
    points += [("layer size", n, n, 16, 4096) for n in (576, 1024, 2048, 8192)]
    points += [("layer size", *UP, 16, 4096)]
    for axis, out, in_, rank, tokens in points:
        layer = make_layer(out, in_, rank, tokens)
        row: dict[str, Any] = {"axis": axis, "out": out, "in": in_, "rank": rank, "tokens": tokens}
        for kind in ("dual_lora", "lora", "floor"):
            row[kind] = time_gpu(layer_step(layer, kind, rank), milliseconds)
        rows.append(row)
    return rows


def bench_few_tokens(milliseconds: int = 30) -> list[dict[str, Any]]:
    """A handful of tokens (generation without merging) against the base layer and against build + GEMM."""
    from dual_lora.kernels import fused, launch
    from dual_lora.kernels.rule import UpdateRule

    rows, rule = [], UpdateRule()
    for name, (out, in_) in LLAMA_7B.items():
        layer = make_layer(out, in_, 16, 64)
        weight, factors = layer["weight"], tuple(f.detach() for f in layer["factors"])
        for tokens in (1, 16, 32, 64):
            x = layer["x"].detach()[:tokens]
            row: dict[str, Any] = {"layer": name, "shape": [out, in_], "tokens": tokens}
            row["base"] = time_gpu(lambda x=x, weight=weight: F.linear(x, weight), milliseconds)
            for kind, limit in (("one_kernel", 64), ("build_and_gemm", 0)):
                with changed(launch, "FEW_TOKENS", limit):
                    row[kind] = time_gpu(
                        lambda x=x, weight=weight, factors=factors: fused.forward(
                            x, weight, None, factors, 0.5, rule, reuse=True
                        ),
                        milliseconds,
                    )
            rows.append(row)
    return rows


def sweep_runs() -> dict[str, tuple[str, str, Callable[[], Any]]]:
    """What `--sweep` times: the tile's name, the name of its number of programs, and the call."""
    from dual_lora.kernels import fused
    from dual_lora.kernels.packing import prepare
    from dual_lora.kernels.rule import UpdateRule

    rule = UpdateRule()
    layer = make_layer(*UP, 16, 4096)
    weight, factors = layer["weight"], tuple(f.detach() for f in layer["factors"])
    other, g = torch.empty_like(weight), layer["grad"].t() @ layer["x"].detach()
    prepared = prepare(factors)
    geometry = fused._geometry(factors, prepared, rule, None)
    small = make_layer(4096, 4096, 16, 16)
    small_factors, small_x = tuple(f.detach() for f in small["factors"]), small["x"].detach()
    return {
        "build": ("build", "", lambda: fused.build(weight, other, prepared, geometry, 0.5, None)),
        "reduce": (
            "reduce", "REDUCE_PROGRAMS",
            lambda: fused.reduce(g, None, prepared, geometry, 0.5, None, rebuild=False),
        ),
        "reduce_and_rebuild": (
            "reduce", "REDUCE_PROGRAMS",
            lambda: fused.reduce(g, weight, prepared, geometry, 0.5, None, rebuild=True),
        ),
        "few_tokens": (
            "few_tokens", "FEW_TOKEN_PROGRAMS",
            lambda: fused.forward(small_x, small["weight"], None, small_factors, 0.5, rule, reuse=True),
        ),
    }  # fmt: skip


def sweep_part(part: int, parts: int, milliseconds: int) -> list[tuple[str, dict[str, Any]]]:
    """Time every `parts`-th point of the sweep; with 0 milliseconds only compile it, into Triton's cache on disk."""
    from dual_lora.kernels import launch

    points = [(name, *run, *point) for name, run in sweep_runs().items() for point in sweep_points(run[0])]
    rows = []
    for name, key, programs, run, tile, count in points[part::parts]:
        row: dict[str, Any] = {"tile": vars(tile), "programs_per_multiprocessor": count}
        with changed(launch.TILES, key, tile), changed(launch, programs, count):
            try:
                run()
                torch.cuda.synchronize()
                if milliseconds:
                    row |= time_gpu(run, milliseconds)
            except Exception as error:  # a tile may not fit in shared memory: that is a result too
                row["error"] = type(error).__name__
        rows.append((name, row))
    return rows


def bench_sweep(milliseconds: int = 20, workers: int = 14) -> dict[str, list[dict[str, Any]]]:
    """Every tile size tried for each kernel on the up projection (few tokens: on q), best first; failures kept."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(sweep_part, [(part, workers, 0) for part in range(workers)])
    results: dict[str, list[dict[str, Any]]] = {}
    for name, row in sweep_part(0, 1, milliseconds):
        results.setdefault(name, []).append(row)
    for rows in results.values():
        rows.sort(key=lambda row: row.get("median_ms", float("inf")))
    return results


def sweep_points(key: str) -> Iterator[tuple[Any, int]]:
    """Tile sizes and programs per multiprocessor that `--sweep` tries for the kernel `key`."""
    from dual_lora.kernels.launch import Tile

    if key == "build":
        for tile in (Tile(64, 64, 4), Tile(64, 128, 4), Tile(128, 64, 4), Tile(128, 64, 8), Tile(128, 128, 8)):
            yield tile, 0
            for steps in (4, 16):
                for stages in (1, 2, 3):
                    yield replace(tile, steps=steps, stages=stages), 0
    elif key == "reduce":
        for tile in (Tile(64, 64, 4), Tile(128, 64, 8)):
            for row_blocks in (1, 2):
                for stages in (1, 2, 3, 4):
                    for count in (4, 8):
                        yield replace(tile, stages=stages, row_blocks=row_blocks), count
        yield Tile(64, 64, 4, stages=2, row_blocks=2), 12
        yield Tile(64, 64, 4, stages=3, row_blocks=1), 12
        yield Tile(64, 32, 4, stages=3, row_blocks=2), 8
    else:
        for tile in (Tile(64, 64, 4), Tile(64, 128, 4), Tile(128, 64, 8)):
            for stages in (2, 3, 4):
                for count in (4, 6, 8):
                    yield replace(tile, stages=stages), count


@contextmanager
def changed(where: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute or a dictionary entry for a while; an empty name changes nothing."""
    if not name:
        yield
        return
    read = where.__getitem__ if isinstance(where, dict) else lambda key: getattr(where, key)
    write = where.__setitem__ if isinstance(where, dict) else lambda key, new: setattr(where, key, new)
    old = read(name)
    write(name, value)
    try:
        yield
    finally:
        write(name, old)


def bench_cpu(size: int = 2048, tokens: int = 512, repetitions: int = 7) -> dict[str, Any]:
    """The tiled path against naive autograd in float32: time, and peak memory beyond what both must hold."""
    torch.manual_seed(0)
    x = torch.randn(tokens, size, requires_grad=True)
    weight, grad = torch.randn(size, size) * size**-0.5, torch.randn(tokens, size)
    factors = make_factors(size, size, 16, "cpu")
    steps = {
        "naive": lambda: reference.dual_lora_linear(x, weight, None, *factors, 0.5),
        "tiled": lambda: dual_lora_linear(x, weight, None, *factors, 0.5, kernel="generic"),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, forward in steps.items():  # interleaved, so that a busy neighbour slows both
            begin = time.perf_counter()
            torch.autograd.grad(forward(), (x, *factors), grad)
            if repetition:
                times[name].append((time.perf_counter() - begin) * 1e3)
    result: dict[str, Any] = {"size": size, "tokens": tokens, "dtype": "float32"}
    for name, forward in steps.items():
        low, *_, high = statistics.quantiles(times[name], n=5)
        result[name] = {
            "p20_ms": low, "median_ms": statistics.median(times[name]), "p80_ms": high,
            "peak_extra_MiB": peak_cpu_bytes(lambda f=forward: torch.autograd.grad(f(), (x, *factors), grad)) / 2**20,
        }  # fmt: skip
    result["time_ratio"] = result["tiled"]["median_ms"] / result["naive"]["median_ms"]
    result["memory_ratio"] = result["tiled"]["peak_extra_MiB"] / result["naive"]["peak_extra_MiB"]
    return result


def peak_cpu_bytes(run: Callable[[], Any]) -> int:
    """Largest sum of live bytes that PyTorch's CPU allocator handed out during `run`, from the profiler's events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--sweep", action="store_true", help="try tile sizes instead of measuring the chosen ones")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    args = parser.parse_args()
    results: dict[str, Any] = {"environment": environment(args.device)}
    if args.device == "cpu":
        name, results["cpu"] = "kernels_cpu.json", bench_cpu()
    elif args.sweep:
        name, results["tiles"] = "kernels_tiles.json", bench_sweep()
    else:
        name = "kernels.json"
        results["parts"] = [bench_parts(*shape) for shape in LLAMA_7B.values()]
        results["few_tokens"] = bench_few_tokens()
        results["growth"] = bench_growth()
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / name).write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {args.output / name}")


if __name__ == "__main__":
    main()
