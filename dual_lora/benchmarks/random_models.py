"""LLaMAs of random bf16 weights with the dimensions of a model of configs/: as fast and as large as that model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dual_lora.config import ModelConfig
from dual_lora.config.compose import compose_one
from dual_lora.models.architecture import transformers_config


def named(name: str) -> ModelConfig:
    """Return what configs/model says of a model."""
    return compose_one([f"model={name}", "task=commonsense", "method=none", "data.source=sample"]).model


def made(model: ModelConfig, device: str) -> Any:
    """Return the model, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(transformers_config(model), dtype=torch.bfloat16)
