"""Time one Dual LoRA layer: kernels against copies, layers against LoRA and the GEMM floor, growth of cost, the CPU.

    python run.py bench kernels                        # on a GPU: results/benchmarks/kernels.json
    python run.py bench kernels --device cpu           # the CPU target: results/benchmarks/kernels_cpu.json

Times are medians with 20 and 80 per cent quantiles. On the GPU every repetition starts with a cold L2 cache.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from dual_lora.benchmarks import timing
from dual_lora.kernels import dual_lora_linear, reference

UP = (11008, 4096)  # LLaMA-7B's up projection: the layer of the targets
LLAMA_7B = {"q": (4096, 4096), "up": UP, "down": (4096, 11008)}
MICRO_BATCHES = (16 * 112, 16 * 256)  # tokens of 16 examples; the targets are for the longer ones
# In Triton's interpreter the kernels run on the CPU: its times mean nothing, so everything is as small as it can be.
SMOKE = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE, DTYPE = ("cpu", torch.float32) if SMOKE else ("cuda", torch.bfloat16)
LAYERS = {"tiny": (64, 96)} if SMOKE else LLAMA_7B
MANY = 64 if SMOKE else 4096  # tokens
Timing = dict[str, float]
Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def time_gpu(run: Callable[[], Any], milliseconds: int = 60) -> Timing:
    """Median and 20/80 quantiles of `run` in milliseconds of GPU time, L2 cache cleared before each repetition."""
    if SMOKE:
        begun = time.perf_counter()
        run()
        once = 1e3 * (time.perf_counter() - begun)
        return {"p20_ms": once, "median_ms": once, "p80_ms": once}
    import triton

    low, median, high = triton.testing.do_bench(run, warmup=15, rep=milliseconds, quantiles=[0.2, 0.5, 0.8])
    return {"p20_ms": low, "median_ms": median, "p80_ms": high}


def make_factors(out: int, in_: int, rank: int, device: str) -> Factors:
    """Trainable float32 factors A, B, C, D of equal ranks, at the default spread 0.02."""

    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, device=device) * 0.02).requires_grad_()

    return drawn(rank, in_), drawn(out, rank), drawn(rank, in_), drawn(out, rank)


def frozen(factors: Factors) -> Factors:
    """The same factors without gradients, as the kernels take them."""
    a, b, c, d = factors
    return a.detach(), b.detach(), c.detach(), d.detach()


def make_layer(out: int, in_: int, rank: int, tokens: int) -> dict[str, Any]:
    """A bf16 layer on the GPU with its input and the gradient of its output."""
    x = torch.randn(tokens, in_, device=DEVICE, dtype=DTYPE, requires_grad=True)
    weight = torch.randn(out, in_, device=DEVICE, dtype=DTYPE) * in_**-0.5
    grad = torch.randn(tokens, out, device=DEVICE, dtype=DTYPE)
    return {"x": x, "weight": weight, "grad": grad, "factors": make_factors(out, in_, rank, DEVICE)}


def bench_parts(out: int, in_: int, rank: int = 16) -> dict[str, Any]:
    """The two kernels of the targets against copies of the same matrix, and the GEMMs around them at 4,096 tokens."""
    from dual_lora.kernels import fused
    from dual_lora.kernels.packing import prepare
    from dual_lora.kernels.spec import Update, update_spec

    layer = make_layer(out, in_, rank, MANY)
    x, grad, weight, factors = layer["x"].detach(), layer["grad"], layer["weight"], frozen(layer["factors"])
    update, other, g = Update(factors, None, 0.5, update_spec()), torch.empty_like(weight), grad.t() @ x
    operands = prepare(update)

    def timed(run: Callable[[], Any]) -> Timing:
        return time_gpu(timing.captured(run, warmup=2))

    pack = timed(lambda: prepare(update))
    copy = timed(lambda: other.copy_(weight))
    build = timed(lambda: fused.build(weight, other, prepare(update)))
    reduce = timed(lambda: fused.reduce(g, weight, operands, rebuild=False))
    both = timed(lambda: fused.reduce(g, weight, operands, rebuild=True))
    gemm = timed(lambda: grad.t() @ x)
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
        factors: Factors = layer["factors"]
        run = partial(dual_lora_linear, x, weight, None, *factors, scaling=0.5, kernel="fused")
        return lambda: torch.autograd.grad(run(), (x, *factors), grad)
    if kind == "floor":
        trainable = weight.detach().requires_grad_()
        return lambda: torch.autograd.grad(F.linear(x, trainable), (x, trainable), grad)
    a = torch.randn(2 * rank, weight.shape[1], device=x.device, dtype=x.dtype, requires_grad=True)
    b = torch.randn(weight.shape[0], 2 * rank, device=x.device, dtype=x.dtype, requires_grad=True)
    return lambda: torch.autograd.grad(F.linear(x, weight) + F.linear(F.linear(x, a), b) * 2.0, (x, a, b), grad)


def growth_model(out: int, in_: int, rank: int, tokens: int, rates: dict[str, float]) -> dict[str, float]:
    """Predicted milliseconds of one layer's forward and backward, from GEMM operations and bytes that must move.

    `rates`: FLOP per ms of a large bf16 GEMM and bytes per ms of a copy. Dual LoRA: three GEMMs, the build (read W0,
    write W0 + dW), and reduction with rebuild (read G and W0, write W0 + dW). LoRA: two GEMMs with W0, six thin ones,
    and about ten passes over outputs and inputs. Floor: three GEMMs.
    """
    gemm = 2 * out * in_ * tokens / rates["flop_per_ms"]
    weight, activations = 2 * out * in_ / rates["bytes_per_ms"], 2 * tokens * (out + in_) / rates["bytes_per_ms"]
    thin = 6 * 2 * (2 * rank) * tokens * (out + in_) / 2 / rates["flop_per_ms"]
    return {"dual_lora": 3 * gemm + 5 * weight, "lora": 2 * gemm + thin + 5 * activations, "floor": 3 * gemm}


def bench_growth(milliseconds: int = 30) -> dict[str, Any]:
    """Forward and backward over tokens, rank and layer size, against LoRA of equal budget and the three-GEMM floor.

    GPU time of a CUDA graph, and eager time, which at few tokens is the time of the launches.
    """
    rows = []
    points = [("LLaMA-7B's layers", *shape, 16, t) for t in MICRO_BATCHES for shape in LLAMA_7B.values()]
    points += [("tokens", 4096, 4096, 16, t) for t in (128, 512, 1024, 2048, 4096, 8192, 16384)]
    points += [("rank", 4096, 4096, r, 4096) for r in (4, 16, 32, 64, 256)]
    points += [("layer size", n, n, 16, 4096) for n in (576, 1024, 2048, 8192)]
    side = 8192
    if SMOKE:
        points, side = [("tokens", 64, 96, 4, 16)], 64
    big = torch.randn(side, side, device=DEVICE, dtype=DTYPE)
    other = torch.empty_like(big)
    rates = {
        "flop_per_ms": 2 * side**3 / time_gpu(lambda: big @ big)["median_ms"],
        "bytes_per_ms": 4 * side**2 / time_gpu(lambda: other.copy_(big))["median_ms"],
    }
    for axis, out, in_, rank, tokens in points:
        layer = make_layer(out, in_, rank, tokens)
        row: dict[str, Any] = {"axis": axis, "out": out, "in": in_, "rank": rank, "tokens": tokens}
        for kind in ("dual_lora", "lora", "floor"):
            step = layer_step(layer, kind, rank)
            row[kind] = time_gpu(timing.captured(step, warmup=2), milliseconds)
            row[kind]["eager_ms"] = time_gpu(step, milliseconds)["median_ms"]
        row["model_ms"] = growth_model(out, in_, rank, tokens, rates)
        rows.append(row)
    return {"rates": rates, "rows": rows}


def bench_few_tokens(milliseconds: int = 30) -> list[dict[str, Any]]:
    """A handful of tokens (generation without merging) against the base layer and against build + GEMM."""
    from dual_lora.kernels import fused, tiles
    from dual_lora.kernels.spec import Update, update_spec

    rows = []
    for name, (out, in_) in LAYERS.items():
        layer = make_layer(out, in_, 16, 64)
        weight, update = layer["weight"], Update(frozen(layer["factors"]), None, 0.5, update_spec())
        for tokens in (1, 16, 32, 64):
            x = layer["x"].detach()[:tokens]
            row: dict[str, Any] = {"layer": name, "shape": [out, in_], "tokens": tokens}
            row["base"] = time_gpu(partial(F.linear, x, weight), milliseconds)
            for kind, limit in (("one_kernel", 64), ("build_and_gemm", 0)):
                with mock.patch.object(tiles, "FEW_TOKENS", limit):
                    row[kind] = time_gpu(partial(fused.forward, x, weight, None, update), milliseconds)
            rows.append(row)
    return rows


def bench_cpu(size: int, tokens: int, repetitions: int = 11) -> dict[str, Any]:
    """The tiled path against naive autograd in float32: time, and peak memory beyond what both must hold.

    One thread, and CPU time rather than wall-clock time: a busy neighbour distorts it less.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.randn(tokens, size, requires_grad=True)
    weight, grad = torch.randn(size, size) * size**-0.5, torch.randn(tokens, size)
    factors = make_factors(size, size, 16, "cpu")
    steps = {
        "naive": lambda: reference.dual_lora_linear(x, weight, None, *factors, scaling=0.5),
        "tiled": lambda: dual_lora_linear(x, weight, None, *factors, scaling=0.5, kernel="generic"),
        "gemm_floor": lambda: (
            torch.mm(x.detach(), weight.t()),
            torch.mm(grad, weight),
            torch.mm(grad.t(), x.detach()),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, run in steps.items():  # interleaved, so that a busy neighbour slows all
            begin = time.process_time()
            if name == "gemm_floor":
                run()
            else:
                gradients(run, (x, *factors), grad)
            if repetition:
                times[name].append((time.process_time() - begin) * 1e3)
    result: dict[str, Any] = {"size": size, "tokens": tokens, "dtype": "float32", "clock": "CPU time, one thread"}
    for name, values in times.items():
        result[name] = timing.quantiles(values)
    for name in ("naive", "tiled"):
        peak = peak_cpu_bytes(partial(gradients, steps[name], (x, *factors), grad))
        result[name]["peak_extra_MiB"] = peak / 2**20
    result["time_ratio"] = result["tiled"]["median_ms"] / result["naive"]["median_ms"]
    result["memory_ratio"] = result["tiled"]["peak_extra_MiB"] / result["naive"]["peak_extra_MiB"]
    return result


def gradients(run: Callable[[], Any], of: tuple[torch.Tensor, ...], grad: torch.Tensor) -> Any:
    return torch.autograd.grad(run(), of, grad)


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


def run(options: argparse.Namespace) -> None:
    """Time the layer on the device and write the result file."""
    results: dict[str, Any] = {"environment": timing.environment("cpu" if SMOKE else options.device)}
    if options.device == "cpu":
        results["cpu"] = bench_cpu(*((64, 16) if SMOKE else (2048, 512)))
        timing.write(options.output, "kernels_cpu", results)
        return
    results["parts"] = [bench_parts(*shape) for shape in LAYERS.values()]
    results["few_tokens"] = bench_few_tokens()
    results["growth"] = bench_growth()
    timing.write(options.output, "kernels", results)
