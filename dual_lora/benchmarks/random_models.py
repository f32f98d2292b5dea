"""LLaMAs of random bf16 weights with the dimensions of a model of configs/: as fast and as large as that model."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from dual_lora.config import ModelConfig
from dual_lora.config.compose import compose_one
from dual_lora.distributed import sharding
from dual_lora.models.architecture import transformers_config
from dual_lora.models.random_checkpoint import SPREAD


def named(name: str) -> ModelConfig:
    """Return what configs/model says of a model."""
    return compose_one([f"model={name}", "task=commonsense", "method=none", "data.source=sample"]).model


def made(model: ModelConfig, device: str) -> Any:
    """Return the model, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(transformers_config(model), dtype=torch.bfloat16)


def made_in_shards(model: ModelConfig, device: torch.device) -> Any:
    """Return the model, split by `sharding.shard`; every process draws its rows, on its device, and has no others."""
    with init_empty_weights(include_buffers=False):
        net = AutoModelForCausalLM.from_config(transformers_config(model), dtype=torch.bfloat16)
    sharding.shard(net, device.type)
    draw = torch.Generator(device).manual_seed(dist.get_rank())
    state = {}
    for name, parameter in net.named_parameters():
        rows = torch.ones(sharding.own(parameter).shape, dtype=torch.bfloat16, device=device)
        if parameter.dim() > 1:
            rows.normal_(0.0, SPREAD, generator=draw)
        state[name] = sharding.rows_as(parameter, rows) if sharding.is_shard(parameter) else rows
    net.load_state_dict(state, strict=False, assign=True)
    net.tie_weights()
    return net.to(device)
