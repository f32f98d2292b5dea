"""Time whole training steps, memory and generation of Dual LoRA against PEFT's LoRA and DoRA and the GEMM floor.

    python run.py bench training                       # one GPU: results/benchmarks/training.json
    python run.py bench training --parts steps dropout # some of the parts; the file keeps the others

The models have LLaMA-7B's and SmolLM2-135M's shapes and random weights, in bf16. A step is forward, backward and fused
AdamW (the floor has no optimizer: it trains the target weights themselves, only to show what its three GEMMs per layer
cost). Adapters: Q, K, V, Up, Down; LoRA and DoRA at r = 32, Dual LoRA at r1 = r2 = 16: equal parameter counts.
Times are medians of GPU time with 20 and 80 per cent quantiles; memory is the peak the allocator handed out in a step.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from dual_lora.benchmarks import random_models, timing
from dual_lora.tuner import DualLoraConfig

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
PARTS = ("short", "steps", "small", "profile", "dropout")
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


def make_model(name: str, device: str) -> LlamaForCausalLM:
    """A frozen LLaMA of random bf16 weights, with the dimensions of a model of configs/."""
    return random_models.made(random_models.named(name), device).requires_grad_(False)


def adapter_config(kind: str, dropout: float) -> PeftConfig:
    """Equal parameter counts for all three methods."""
    if kind == "dual_lora":
        return DualLoraConfig(r_magnitude=16, r_direction=16, alpha=32, target_modules=TARGETS, dropout=dropout)
    return LoraConfig(r=32, lora_alpha=64, target_modules=TARGETS, use_dora=kind == "dora", lora_dropout=dropout)


@contextmanager
def adapted(
    model: LlamaForCausalLM, variant: str, dropout: float = 0.0
) -> Iterator[tuple[nn.Module, Callable[[], Any]]]:
    """The model with one method's adapters (none for the floor) and its autocast; the bare model again afterwards."""
    kind, float32_factors, autocast = VARIANTS[variant]

    def context() -> AbstractContextManager[Any]:
        if not autocast:
            return nullcontext()
        cuda = torch.cuda.is_available()
        cache = not (cuda and torch.cuda.is_current_stream_capturing())  # a graph must cast again at each replay
        return torch.autocast(model.device.type, dtype=torch.bfloat16, cache_enabled=cache)

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
    embeddings = model.get_input_embeddings()
    tokens = torch.randint(embeddings.num_embeddings, (batch, length), device=embeddings.weight.device)
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
                    result[variant] = timing.time_steps(step, model.device.type, warmup=2, repetitions=repetitions)
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
                replay = timing.captured(step)
                results[variant] = timing.time_steps(replay, model.device.type, warmup=3, repetitions=20)
            except RuntimeError as error:  # what cannot be captured is a gap in the table, not a failure
                results[variant] = {"error": f"{type(error).__name__}: {error}"[:300]}
            print("graph", variant, results[variant], flush=True)
            del adapted_model
    return results


def bench_profile(model: LlamaForCausalLM, batch: int, length: int) -> dict[str, Any]:
    """GPU time of one Dual LoRA step by kind of kernel."""
    with adapted(model, "dual_lora") as (adapted_model, context):
        adapted_model.train()
        step = make_step(adapted_model, context, batch, length, optimize=True)
        for _ in range(2):
            step()
        cuda = model.device.type == "cuda"
        activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[activity]) as profile:
            step()
            if cuda:
                torch.cuda.synchronize()
    kernels: dict[str, float] = {}
    for event in profile.key_averages():
        milliseconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3
        kernels[event.key[:90]] = kernels.get(event.key[:90], 0.0) + milliseconds
    top = dict(sorted(kernels.items(), key=lambda item: -item[1])[:15])
    return {"ms_by_kind": timing.by_kind(kernels), "ms_of_top_kernels": top}


def run(options: argparse.Namespace) -> None:
    """Time the parts and write each as it is done."""
    device = "cpu" if options.smoke else "cuda"
    models = ("tiny_llama", "tiny_llama") if options.smoke else ("smollm2", "llama")
    smoked = (2, 8)
    small_batch = smoked if options.smoke else (16, 128)
    short_batch = smoked if options.smoke else (16, 112)  # of the paper's commonsense runs
    large_batch = smoked if options.smoke else (16, 256)
    parts = options.parts or list(PARTS)
    results = timing.read(options.output, "training")
    results["environment"] = timing.environment(device)

    def keep(name: str, value: Any) -> None:
        results[name] = value
        timing.write(options.output, "training", results)

    if "small" in parts:
        small = make_model(models[0], device)
        variants = [variant for variant in VARIANTS if "dora" not in variant]
        keep("small", bench_steps(small, variants, *small_batch, repetitions=10)[0])
        keep("small_cuda_graph", bench_graphs(small, variants[:-1], *small_batch))
        del small
    if set(parts) - {"small"}:
        model = make_model(models[1], device)
    if "short" in parts:
        keep("short", bench_steps(model, list(VARIANTS), *short_batch, repetitions=10)[0])
    if "steps" in parts:
        both = (False, True)
        plain, checkpointed = bench_steps(model, list(VARIANTS), *large_batch, repetitions=5, checkpointing=both)
        keep("steps", plain)
        keep("checkpointing", checkpointed)
    if "profile" in parts:
        keep("profile", bench_profile(model, *large_batch))
    if "dropout" in parts:
        variants = ["dual_lora", "dual_lora_autocast", "lora_fp32_factors", "lora_bf16_factors"]
        keep("dropout", bench_steps(model, variants, *large_batch, dropout=0.05, repetitions=5)[0])
