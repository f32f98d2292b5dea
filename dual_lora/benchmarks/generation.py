"""Time generation: base model, Dual LoRA not merged (no merged weight is kept anywhere), and merged.

    python run.py bench generation                     # one GPU: results/benchmarks/training_generation.json

LLaMA-7B's shape, random bf16 weights, adapters on Q, K, V, Up, Down at r1 = r2 = 16; batches 1 and 16. Measured are
`generate` in eager mode, where launches decide, and one decoding step as a CUDA graph, where the GPU does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import LlamaForCausalLM, StaticCache

from dual_lora.benchmarks import timing
from dual_lora.benchmarks.training import adapter_config, make_model


def generation_time(
    model: nn.Module, vocabulary: int, batch: int, tokens: int = 16, repetitions: int = 3
) -> dict[str, float]:
    """Milliseconds per generated token with `generate` (eager, dynamic cache), prompt of 32 tokens."""
    device = model.device
    prompt = torch.randint(vocabulary, (batch, 32), device=device)
    times = []
    for repetition in range(repetitions + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0,
            min_new_tokens=tokens, max_new_tokens=tokens,
        )  # fmt: skip
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repetition:
            times.append((time.perf_counter() - begin) * 1e3 / tokens)
    return {"min_ms": min(times), "median_ms": statistics.median(times), "max_ms": max(times)}


@torch.no_grad()
def graph_time(model: nn.Module, vocabulary: int, batch: int) -> dict[str, Any]:
    """Milliseconds of GPU time per token: one decoding step in a CUDA graph, static cache of 128 positions."""
    config = model.config
    cache = StaticCache(config=config, max_cache_len=128)
    tokens = torch.randint(vocabulary, (batch, 1), device=model.device)
    position = torch.full((1,), 64, device=model.device)

    def step() -> torch.Tensor:
        return model(
            input_ids=tokens, past_key_values=cache, cache_position=position, position_ids=position[None],
            use_cache=True,
        ).logits  # fmt: skip

    result = timing.time_steps(timing.captured(step), model.device.type, warmup=3, repetitions=20)
    return {name: result[name] for name in ("p20_ms", "median_ms", "p80_ms")}


def bench_generation(model: LlamaForCausalLM) -> dict[str, Any]:
    """Base, adapter not merged, adapter merged; batches 1 and 16; eager `generate` and a CUDA graph of one step."""
    results: dict[str, Any] = {}
    vocabulary = min(1000, model.config.vocab_size)

    def measure(name: str, candidate: nn.Module) -> None:
        candidate.eval()
        for batch in (1, 16):
            row: dict[str, Any] = {"generate": generation_time(candidate, vocabulary, batch)}
            try:
                row["cuda_graph"] = graph_time(candidate, vocabulary, batch)
            except RuntimeError as error:  # what the installed transformers cannot capture is a gap, not a failure
                row["cuda_graph"] = {"error": f"{type(error).__name__}: {error}"[:300]}
            results[f"{name}_batch_{batch}"] = row
            print(name, batch, row, flush=True)

    measure("base", model)
    peft_model = get_peft_model(model, adapter_config("dual_lora", 0.0))
    measure("not_merged", peft_model)
    peft_model.merge_adapter()
    measure("merged", peft_model)
    peft_model.unmerge_adapter()
    peft_model.unload()
    return results


def run(options: argparse.Namespace) -> None:
    """Time all three and write the result file."""
    device, name = ("cpu", "tiny_llama") if options.smoke else ("cuda", "llama")
    results = {"environment": timing.environment(device), "generation": bench_generation(make_model(name, device))}
    timing.write(options.output, "training_generation", results)
