"""Time a LoRA training step whose logits are computed everywhere against one that computes them where the loss is.

    python scripts/bench_loss_positions.py                      # one GPU: results/benchmarks/loss_positions.json
    python scripts/bench_loss_positions.py --smoke --output F   # a CPU and a tiny model: does it still run?

Random weights in bf16 with SmolLM2-135M's and LLaMA-3-8B's dimensions, fp32 factors under autocast as in the Trainer.
A batch is commonsense's under the strict protocol: a prompt without loss, then a short answer. Times are medians of
the clock, the device synchronised, with 20 and 80 per cent quantiles; memory is the most the allocator handed out.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_kernels import RESULTS, environment
from bench_training import SMOLLM2_135M, TARGETS
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dual_lora.training.loss import mean_loss, next_token_labels, token_loss

LLAMA3_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
CASES = {  # name: (dimensions, rows, prompt tokens, answer tokens)
    "SmolLM2-135M": (SMOLLM2_135M, 32, 120, 8),
    "LLaMA-3-8B": (LLAMA3_8B, 16, 160, 8),
}


def measure(shape: dict[str, Any], rows: int, prompt: int, answer: int, device: str, repeats: int) -> dict[str, Any]:
    """Return time and peak memory of both ways on one model."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            base = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa"))
    finally:
        torch.set_default_dtype(torch.float32)
    model: Any = get_peft_model(base, LoraConfig(r=32, lora_alpha=64, target_modules=TARGETS))
    ids = torch.randint(shape["vocab_size"], (rows, prompt + answer), device=device)
    labels = ids.clone()
    labels[:, :prompt] = -100
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    batch = {"input_ids": ids, "shift_labels": next_token_labels(labels)}

    def step(everywhere: bool) -> None:
        with torch.autocast(device, torch.bfloat16):
            if everywhere:
                logits = model(input_ids=ids, use_cache=False).logits
                loss = mean_loss(logits.flatten(0, 1), batch["shift_labels"].flatten())
            else:
                loss, _ = token_loss(partial(model, use_cache=False), batch, model.get_output_embeddings())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    result: dict[str, Any] = {"rows": rows, "prompt_tokens": prompt, "answer_tokens": answer}
    for name, everywhere in (("everywhere", True), ("where_the_loss_is", False)):
        result[name] = _timed(partial(step, everywhere), device, repeats)
    return result


def _timed(step: Callable[[], None], device: str, repeats: int) -> dict[str, float | None]:
    cuda = device == "cuda"
    for _ in range(3):
        step()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begun))
    low, *_, high = statistics.quantiles(times, n=5)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    return {"p20_ms": low, "median_ms": statistics.median(times), "p80_ms": high, "peak_GiB": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder for loss_positions.json")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU")
    options = parser.parse_args()
    cases = {"tiny": (TINY, 2, 12, 4)} if options.smoke else CASES
    device = "cpu" if options.smoke else "cuda"
    results: dict[str, Any] = {"environment": environment(device)}
    for name, (shape, rows, prompt, answer) in cases.items():
        results[name] = measure(shape, rows, prompt, answer, device, repeats=10)
        print(name, json.dumps(results[name]), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "loss_positions.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
