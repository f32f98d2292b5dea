"""Training steps of the suite itself on random tokens: what the benchmarks of launchers and of the host's part time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from dual_lora import methods
from dual_lora.config import RunConfig
from dual_lora.config.compose import compose
from dual_lora.config.schedule import plan_batches
from dual_lora.distributed import processes
from dual_lora.evaluation.causal_lm import Collator
from dual_lora.models.architecture import transformers_config
from dual_lora.models.tiny_tokenizer import tiny_tokenizer
from dual_lora.tasks.base import Head
from dual_lora.tasks.encoding import IGNORED
from dual_lora.training import trainer

# Layers so narrow that a step is almost only host time, as for a small model on a fast GPU.
NARROW: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_layers": 30, "num_heads": 4, "num_key_value_heads": 4,
    "vocab_size": 512, "batch": 2, "length": 16, "steps": 40, "rounds": 3,
}  # fmt: skip


def make_config(method: str, size: dict[str, Any], device: str, folder: Path, *launcher: str) -> RunConfig:
    """Compose the run as `python run.py` does; only the sizes of the model differ."""
    dimensions = [f"model.dimensions.{name}={size[name]}" for name in list(size)[:6]]
    words = ["model=tiny_llama", "model.dtype=bfloat16", "task=commonsense", "data.source=sample", *dimensions]
    words += [f"method={method}", f"recipe.global_batch={size['batch']}", f"launch.per_device_batch={size['batch']}"]
    words += ["profile.max_steps=1000", "recipe.epochs=1000", "launch.save_every_steps=1000", f"results={folder}"]
    [config] = compose([*words, *launcher, f"launch.device={device}"])
    return config


def make_model(config: RunConfig, device: str) -> torch.nn.Module:
    """Return a LLaMA of random bf16 weights made on the device, with the method's adapter in float32, as in a run."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(transformers_config(config.model), dtype=torch.bfloat16)
    return methods.apply(model, config.method, model_config=config.model, head=Head("causal_lm"), seed=0)


def train(
    model: torch.nn.Module,
    config: RunConfig,
    size: dict[str, Any],
    *,
    batches: int,
    dtype: str,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
    world_size: int = 1,
) -> trainer.TrainingResult:
    """Train as a run does, on so many batches of random rows of one length; the loss is of their last `answer` tokens.

    Of all where `size` does not say.
    """
    tokenizer = tiny_tokenizer("llama", max_length=size["length"])
    tokenizer.pad_token = tokenizer.eos_token  # the rows are of one length; the collator asks for it all the same
    ids = torch.randint(size["vocab_size"], (batches * size["batch"], size["length"])).tolist()
    prompt = size["length"] - size.get("answer", size["length"])
    labels = [[IGNORED] * prompt + row[prompt:] for row in ids]
    rows = [
        {"input_ids": row, "attention_mask": [1] * len(row), "labels": of} for row, of in zip(ids, labels, strict=True)
    ]
    return trainer.train(
        model,
        config,
        trainer.Data(tokenizer, Collator(tokenizer, few_shapes=processes.uses_gpu(config.launch.device)), rows, []),
        batches=plan_batches(config, world_size),
        dtype=dtype,
        folder=folder,
        head=Head("causal_lm"),
        callbacks=list(callbacks),
    )
