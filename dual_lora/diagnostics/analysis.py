"""The diagnostics of a trained adapter, without its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from dual_lora.diagnostics.callback import compare_with_full, final_measures
from dual_lora.diagnostics.products import product_measures
from dual_lora.diagnostics.updates import adapted_layers, whole_update
from dual_lora.tuner import DualLoraLinear


def analyze(model: nn.Module, *, rank_layers: int | None = None, reference: Path | None = None) -> dict[str, Any]:
    """Return, per adapted layer, the size and the ranks of its update, and for Dual LoRA measures of its products.

    Args:
        model: a PEFT model with its adapter loaded.
        rank_layers: compute ranks and agreement for that many layers, evenly spread; None for all.
        reference: safetensors file with the weights of the same run under full fine-tuning.

    Raises:
        ValueError: the model has no adapted layer whose weight is available.
    """
    layers = adapted_layers(model)
    if not layers:
        raise ValueError("no adapted linear layer has an available weight; load the adapter on a plain base")
    found: dict[str, Any] = {}
    for name, layer in layers.items():
        weight, update = layer.get_base_layer().weight.float(), whole_update(layer)
        norm = float(weight.norm())
        found[name] = {"shape": list(update.shape), "weight_norm": norm, "update_ratio": float(update.norm()) / norm}
        if isinstance(layer, DualLoraLinear):
            found[name] |= product_measures(layer)
    names = list(layers)
    chosen = names if rank_layers is None else names[:: max(1, -(-len(names) // rank_layers))]
    for name in chosen:
        found[name] |= final_measures(layers[name])
    if reference is not None:
        for name, values in compare_with_full(layers, reference, chosen).items():
            found[name] |= values
    return found
