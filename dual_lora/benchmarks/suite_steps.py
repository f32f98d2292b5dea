"""Training steps of the suite itself on random tokens: what the benchmarks of launchers and of the host's part time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from dual_lora import methods
from dual_lora.benchmarks import random_models
from dual_lora.config import RunConfig
from dual_lora.config.compose import compose
from dual_lora.config.schedule import plan_batches
from dual_lora.distributed import processes
from dual_lora.evaluation.causal_lm import Collator
from dual_lora.models.tiny_tokenizer import tiny_tokenizer
from dual_lora.tasks.base import Head
from dual_lora.tasks.encoding import IGNORED
from dual_lora.training import trainer
from dual_lora.training.result import TrainingResult


def make_config(method: str, size: dict[str, Any], device: str, folder: Path, *launcher: str) -> RunConfig:
    """Compose a run of the tiny LLaMA as `python run.py` does, with the dimensions of `size`, or of its model."""
    asked = size.get("dimensions") or asdict(random_models.named(size.get("model", "tiny_llama")).dimensions)
    dimensions = [f"model.dimensions.{name}={number}" for name, number in asked.items()]
    words = ["model=tiny_llama", "model.dtype=bfloat16", "task=commonsense", "data.source=sample", *dimensions]
    words += [f"method={method}", f"recipe.global_batch={size['batch']}", f"launch.per_device_batch={size['batch']}"]
    words += ["profile.max_steps=1000", "recipe.epochs=1000", "launch.save_every_steps=1000", f"results={folder}"]
    [config] = compose([*words, *launcher, f"launch.device={device}"])
    return config


def make_model(config: RunConfig, device: str) -> torch.nn.Module:
    """Return a LLaMA of random bf16 weights made on the device, with the method's adapter in float32, as in a run."""
    model = random_models.made(config.model, device)
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
) -> TrainingResult:
    """Train as a run does, on so many batches of random rows of one length; the loss is of their last `answer` tokens.

    Of all where `size` does not say.
    """
    tokenizer = tiny_tokenizer("llama", max_length=size["length"])
    tokenizer.pad_token = tokenizer.eos_token  # the rows are of one length; the collator asks for it all the same
    ids = torch.randint(config.model.dimensions.vocab_size, (batches * size["batch"], size["length"])).tolist()
    prompt = size["length"] - size.get("answer", size["length"])
    labels = [[IGNORED] * prompt + row[prompt:] for row in ids]
    rows = [
        {"input_ids": row, "attention_mask": [1] * len(row), "labels": of} for row, of in zip(ids, labels, strict=True)
    ]
    return trainer.train(
        model,
        config,
        trainer.Data(tokenizer, Collator(tokenizer, few_shapes=processes.uses_gpu(config.launch.device)), rows, []),
        batches=plan_batches(config),
        dtype=dtype,
        folder=folder,
        head=Head("causal_lm"),
        callbacks=list(callbacks),
    )
