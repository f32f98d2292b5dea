"""Time whole training steps, memory and generation of Dual LoRA against PEFT's LoRA and DoRA and the GEMM floor.

    python scripts/bench_training.py                       # one GPU: results/benchmarks/training.json
    python scripts/bench_training.py --parts steps dropout # some of the parts, kept beside the others

The models have LLaMA-7B's and SmolLM2-135M's shapes and random weights, in bf16. A step is forward, backward and fused
AdamW (the floor has no optimizer: it trains the target weights themselves, only to show what its three GEMMs per layer
cost). Adapters: Q, K, V, Up, Down; LoRA and DoRA at r = 32, Dual LoRA at r1 = r2 = 16: equal parameter counts.
Times are medians of GPU time with 20 and 80 per cent quantiles; memory is the peak the allocator handed out in a step.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from bench_kernels import RESULTS, environment
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dual_lora import DualLoraConfig

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
PARTS = ("short", "steps", "small", "profile", "dropout")
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
SMOLLM2_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
# name: (adapter, float32 factors, autocast). The Trainer's bf16=True is autocast; the others are plain bf16 models.
VARIANTS = {
    "dual_lora": ("dual_lora", True, False),
    "dual_lora_autocast": ("dual_lora", True, True),
    "lora_fp32_factors": ("lora", True, True),
    "lora_bf16_factors": ("lora", False, False),
    "dora_fp32_factors": ("dora", True, True),
    "dora_bf16_factors": ("dora", False, False),
    "floor": ("floor", False, False),
}


def make_model(shape: dict[str, Any]) -> LlamaForCausalLM:
    """A LLaMA of random bf16 weights, made on the GPU."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa"))
    finally:
        torch.set_default_dtype(default)
    return model.requires_grad_(False)


def adapter_config(kind: str, dropout: float) -> PeftConfig:
    """Equal parameter counts for all three methods."""
    if kind == "dual_lora":
        return DualLoraConfig(r_magnitude=16, r_direction=16, alpha=32, target_modules=TARGETS, dropout=dropout)
    return LoraConfig(r=32, lora_alpha=64, target_modules=TARGETS, use_dora=kind == "dora", lora_dropout=dropout)


@contextmanager
def adapted(model: nn.Module, variant: str, dropout: float = 0.0) -> Iterator[tuple[nn.Module, Callable[[], Any]]]:
    """The model with one method's adapters (none for the floor) and its autocast; the bare model again afterwards."""
    kind, float32_factors, autocast = VARIANTS[variant]

    def context() -> AbstractContextManager[Any]:
        if not autocast:
            return nullcontext()
        cache = not torch.cuda.is_current_stream_capturing()  # a graph must cast anew at each replay
        return torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=cache)

    if kind == "floor":
        targets = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in TARGETS]
        for module in targets:
            module.weight.requires_grad_(True)
        yield model, context
        for module in targets:
            module.weight.requires_grad_(False)
            module.weight.grad = None
    else:
        peft_model = get_peft_model(model, adapter_config(kind, dropout), autocast_adapter_dtype=float32_factors)
        yield peft_model, context
        peft_model.unload()
    gc.collect()
    torch.cuda.empty_cache()


def make_step(
    model: nn.Module, context: Callable[[], Any], batch: int, length: int, optimize: bool, capturable: bool = False
) -> Callable[[], None]:
    """One training step on fixed random tokens."""
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocabulary, (batch, length), device="cuda")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True, capturable=capturable) if optimize else None

    def step() -> None:
        with context():
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    return step


def time_steps(step: Callable[[], None], warmup: int, repetitions: int) -> dict[str, float]:
    """Median and 20/80 quantiles of a step, from GPU events, and its peak memory in GiB."""
    for _ in range(warmup):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repetitions):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    low, *_, high = statistics.quantiles(times, n=5)
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {"p20_ms": low, "median_ms": statistics.median(times), "p80_ms": high, "peak_GiB": peak}


def bench_steps(
    model: LlamaForCausalLM,
    variants: list[str],
    batch: int,
    length: int,
    *,
    dropout: float = 0.0,
    repetitions: int = 8,
    checkpointing: tuple[bool, ...] = (False,),
) -> list[dict[str, Any]]:
    """Steps of several methods on one base model, in turn, in this process; one result per entry of `checkpointing`."""
    results: list[dict[str, Any]] = [
        {"batch": batch, "length": length, "dropout": dropout, "checkpointing": on} for on in checkpointing
    ]
    for variant in variants:
        with adapted(model, variant, dropout) as (adapted_model, context):
            adapted_model.train()
            step = make_step(adapted_model, context, batch, length, optimize=variant != "floor")
            for result in results:
                if result["checkpointing"]:
                    model.gradient_checkpointing_enable({"use_reentrant": False})
                else:
                    model.gradient_checkpointing_disable()
                try:
                    result[variant] = time_steps(step, warmup=2, repetitions=repetitions)
                except torch.cuda.OutOfMemoryError:
                    result[variant] = {"error": "out of memory"}
                print(variant, result[variant], flush=True)
            del adapted_model, step
    model.gradient_checkpointing_disable()
    return results


def bench_graphs(model: LlamaForCausalLM, variants: list[str], batch: int, length: int) -> dict[str, Any]:
    """The same steps as one CUDA graph: what is left when launches cost nothing."""
    results: dict[str, Any] = {"batch": batch, "length": length}
    for variant in variants:
        with adapted(model, variant) as (adapted_model, context):
            adapted_model.train()
            try:
                step = make_step(adapted_model, context, batch, length, optimize=True, capturable=True)
                results[variant] = time_steps(captured(step), warmup=3, repetitions=20)
            except Exception as error:  # what cannot be captured is a gap in the table, not a failure
                results[variant] = {"error": f"{type(error).__name__}: {error}"[:300]}
            print("graph", variant, results[variant], flush=True)
            del adapted_model
    return results


def captured(step: Callable[[], Any]) -> Callable[[], None]:
    """The replay of `step` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def bench_profile(model: LlamaForCausalLM) -> dict[str, Any]:
    """GPU time of one Dual LoRA step by kind of kernel."""
    with adapted(model, "dual_lora") as (adapted_model, context):
        adapted_model.train()
        step = make_step(adapted_model, context, 16, 256, optimize=True)
        for _ in range(2):
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            torch.cuda.synchronize()
    kinds = {
        "build_weight": "build", "reduce_gradient": "reduce", "finish_gradient": "finish", "pack_factors": "pack",
        "nvjet": "GEMM", "gemm": "GEMM", "cutlass": "GEMM", "flash": "attention", "fmha": "attention", "adam": "AdamW",
    }  # fmt: skip
    totals: dict[str, float] = {}
    kernels: dict[str, float] = {}
    for event in profile.key_averages():
        milliseconds = event.self_device_time_total / 1e3
        kind = next((k for key, k in kinds.items() if key in event.key.lower()), "other")
        totals[kind] = totals.get(kind, 0.0) + milliseconds
        kernels[event.key[:90]] = kernels.get(event.key[:90], 0.0) + milliseconds
    top = dict(sorted(kernels.items(), key=lambda item: -item[1])[:15])
    return {"ms_by_kind": totals, "ms_of_top_kernels": top}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
    args = parser.parse_args()
    path = args.output / "training.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results["environment"] = environment("cuda")
    args.output.mkdir(parents=True, exist_ok=True)

    def keep(name: str, value: Any) -> None:
        results[name] = value
        path.write_text(json.dumps(results, indent=1) + "\n")

    if "small" in args.parts:
        small = make_model(SMOLLM2_135M)
        variants = [variant for variant in VARIANTS if "dora" not in variant]
        keep("small", bench_steps(small, variants, 16, 128, repetitions=10)[0])
        keep("small_cuda_graph", bench_graphs(small, variants[:-1], 16, 128))
        del small
    if set(args.parts) - {"small"}:
        model = make_model(LLAMA_7B)
    if "short" in args.parts:
        keep("short", bench_steps(model, list(VARIANTS), 16, 112, repetitions=10)[0])
    if "steps" in args.parts:
        plain, checkpointed = bench_steps(model, list(VARIANTS), 16, 256, repetitions=5, checkpointing=(False, True))
        keep("steps", plain)
        keep("checkpointing", checkpointed)
    if "profile" in args.parts:
        keep("profile", bench_profile(model))
    if "dropout" in args.parts:
        variants = ["dual_lora", "dual_lora_autocast", "lora_fp32_factors", "lora_bf16_factors"]
        keep("dropout", bench_steps(model, variants, 16, 256, dropout=0.05, repetitions=5)[0])
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
