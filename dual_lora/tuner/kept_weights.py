"""W₀ + ΔW kept from forward to backward, which builds it once more otherwise: memory for time, and the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dual_lora.tuner.layer import DualLoraLinear

SHARE = 1 / 6  # of the free memory: most of it must be left to the optimizer and to longer batches


@contextmanager
def kept_weights(model: nn.Module, itemsize: int, *, recomputed: bool) -> Iterator[None]:
    """Let Dual LoRA layers keep the weights that a step builds, where these are a small part of the GPU's free memory.

    Args:
        itemsize: bytes of a number in the dtype of the products.
        recomputed: activation checkpointing computes each block again in backward, so that only its weights are alive.
    """
    layers = [module for module in model.modules() if isinstance(module, DualLoraLinear)]
    needed = itemsize * sum(layer.in_features * layer.out_features for layer in layers)
    keeps = bool(layers) and (recomputed or needed <= SHARE * _free(layers[0]))
    for layer in layers:
        layer.keeps_weight = keeps
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps_weight = False


def _free(layer: DualLoraLinear) -> int:
    """Return the bytes that tensors could still take on the layer's GPU; 0 on a CPU, where no kernel keeps a weight."""
    device = layer.get_base_layer().weight.device
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
