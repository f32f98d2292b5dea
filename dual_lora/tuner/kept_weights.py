"""W₀ + ΔW kept from forward to backward, which builds it once more otherwise: memory for time, and the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dual_lora.kernels import Update, beside, dispatch
from dual_lora.tuner.layer import DualLoraLinear

SHARE = 1 / 6  # of the free memory: most of it must be left to the optimizer and to longer batches


@contextmanager
def kept_weights(model: nn.Module, dtype: torch.dtype, *, recomputed: bool) -> Iterator[None]:
    """Let Dual LoRA layers keep the weights that a step builds, where these are a small part of the GPU's free memory.

    Args:
        dtype: of the products.
        recomputed: activation checkpointing computes each block again in backward, so that only its weights are alive.
    """
    layers = [module for module in model.modules() if isinstance(module, DualLoraLinear)]
    needed = dtype.itemsize * sum(layer.in_features * layer.out_features for layer in layers)
    keeps = bool(layers) and (recomputed or needed <= SHARE * _free(layers[0]))
    for layer in layers:
        layer.keeps_weight = keeps
    # With checkpointing those of one block only are to be alive.
    ahead = model.register_forward_pre_hook(lambda *_: _form(layers, dtype)) if keeps and not recomputed else None
    try:
        yield
    finally:
        if ahead is not None:
            ahead.remove()
        for layer in layers:
            layer.keeps_weight = False


def _form(layers: list[DualLoraLinear], dtype: torch.dtype) -> None:
    """Begin to form the weights of all layers beside what precedes each of them, where a step is recorded."""
    branch = beside.branch()
    if branch is not None:
        dispatch.keep_ahead([part for layer in layers for part in _parts(layer)], dtype, branch)


def _parts(layer: DualLoraLinear) -> list[tuple[torch.Tensor | None, Update]]:
    """Return W₀, or None if ΔW is formed alone, and the update, of the one weight that a forward pass forms, if any."""
    active = [name for name in layer.active_adapters if name in layer.dual_lowrank_magnitude_A]
    if layer.disable_adapters or layer.merged or len(active) != 1:
        return []
    weight = layer.get_base_layer().weight
    choice = layer.choose_kernel(weight.device, active)
    return [(weight if choice.one_gemm else None, layer._step_update(active[0]))]


def _free(layer: DualLoraLinear) -> int:
    """Return the bytes that tensors could still take on the layer's GPU; 0 on a CPU, where no kernel keeps a weight."""
    device = layer.get_base_layer().weight.device
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
