"""How a model computes while it trains, and only then: without needless masks, on a stream, on kept weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from dual_lora.config import LaunchConfig
from dual_lora.models import attention
from dual_lora.models.head import unwrapped
from dual_lora.training.recorders import on_own_stream
from dual_lora.tuner.kept_weights import kept_weights
from dual_lora.tuner.warmup import scaling_in_memory


@contextmanager
def as_it_trains(
    model: torch.nn.Module, launch: LaunchConfig, device: torch.device, dtype: str, graphs: bool
) -> Iterator[None]:
    """Let the model compute in the ways that are right, or worth it, only while it trains."""
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(attention.without_mask(unwrapped(model)))
        stack.enter_context(attention.with_distances(unwrapped(model)))
        if graphs:
            stack.enter_context(on_own_stream(device))
            stack.enter_context(scaling_in_memory(model))
        if launch.engine in ("single", "torchrun"):
            products = torch.bfloat16 if dtype == "bfloat16" else torch.float32
            stack.enter_context(kept_weights(model, products, recomputed=launch.gradient_checkpointing))
        yield
