"""Time a LoRA training step whose logits are computed everywhere against one that computes them where the loss is.

    python run.py bench loss-positions         # one GPU: results/benchmarks/loss_positions.json

Random weights in bf16 with SmolLM2-135M's and LLaMA-3-8B's dimensions, fp32 factors under autocast as in the Trainer.
A batch is commonsense's under the strict protocol: a prompt without loss, then a short answer. Times are medians of
the clock, the device synchronised, with 20 and 80 per cent quantiles; memory is the most the allocator handed out.
"""

from __future__ import annotations

import argparse
import gc
import json
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from dual_lora.benchmarks import timing
from dual_lora.benchmarks.training import TARGETS, make_model
from dual_lora.training.loss import mean_loss, next_token_labels, token_loss

CASES = {  # name: (dimensions, rows, prompt tokens, answer tokens)
    "SmolLM2-135M": ("smollm2", 32, 120, 8),
    "LLaMA-3-8B": ("llama3", 16, 160, 8),
}


def measure(name: str, rows: int, prompt: int, answer: int, device: str) -> dict[str, Any]:
    """Return time and peak memory of both ways on one model."""
    base = make_model(name, device)
    model: Any = get_peft_model(base, LoraConfig(r=32, lora_alpha=64, target_modules=TARGETS))
    ids = torch.randint(base.config.vocab_size, (rows, prompt + answer), device=device)
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
    for way, everywhere in (("everywhere", True), ("where_the_loss_is", False)):
        result[way] = timing.time_steps(partial(step, everywhere), device, warmup=3, repetitions=10, clock=True)
    return result


def run(options: argparse.Namespace) -> None:
    """Time both ways on each model and write the result file."""
    cases = {"tiny": ("tiny_llama", 2, 12, 4)} if options.smoke else CASES
    device = "cpu" if options.smoke else "cuda"
    results: dict[str, Any] = {"environment": timing.environment(device)}
    for name, case in cases.items():
        results[name] = measure(*case, device)
        print(name, json.dumps(results[name]), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    timing.write(options.output, "loss_positions", results)
