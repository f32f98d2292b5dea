"""The whole update that a training makes to a weight, of which PEFT's methods may report only a part."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class TrainedLinear:
    """A linear layer under full fine-tuning, with its start on the host: measured as an adapted layer is."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self._start = layer, copy.deepcopy(layer).cpu().requires_grad_(False)

    def get_base_layer(self) -> nn.Module:
        """Return the layer as it was before its training."""
        return self._start

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.layer.named_parameters()


Layer: TypeAlias = BaseTunerLayer | TrainedLinear


def trained_layers(model: nn.Module, targets: Iterable[str]) -> dict[str, TrainedLinear]:
    """Return those layers, before their full fine-tuning, that adapters of these target modules would adapt."""
    ends = tuple(f".{target}" for target in targets)
    return {
        name: TrainedLinear(module)
        for name, module in model.named_modules()
        if f".{name}".endswith(ends) and isinstance(module, nn.Linear | Conv1D) and has_whole_weight(module)
    }


def adapted_layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """Return the adapted linear layers by their name in the base model.

    Layers whose weight is not available (quantized, or split over processes) are left out.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and has_whole_weight(module.get_base_layer()):
            found[name.removeprefix("base_model.model.")] = module
    return found


def has_whole_weight(module: nn.Module) -> bool:
    """Whether a layer has its weight as one matrix of numbers, neither quantized nor split over processes."""
    weight = getattr(module, "weight", None)
    if weight is None or hasattr(weight, "ds_id") or hasattr(weight, "placements"):
        return False
    return bool(weight.ndim == 2 and weight.is_floating_point())


def oriented(layer: Layer, weight: Tensor) -> Tensor:
    """Return a weight of the layer as (out, in): GPT-2's Conv1D stores (in, out)."""
    return weight.T if isinstance(layer.get_base_layer(), Conv1D) else weight


@torch.no_grad()
def whole_update(layer: Layer) -> Tensor:
    """Return merged − frozen weight as float32 (out, in): everything the adapter does, including DoRA's magnitude.

    Of a fully fine-tuned layer: its weight − that before the training.

    The frozen weight is float64 during the computation, so that no rounding of the sum raises the update's rank. It is
    the same tensor as before afterwards. For PiSSA the frozen weight is the residual, not the pretrained weight.
    """
    base = layer.get_base_layer()
    if isinstance(layer, TrainedLinear):
        now = layer.layer.weight.double()
        return oriented(layer, now - base.weight.to(now)).float()
    kept = base.weight.data
    wide = kept.double()
    base.weight.data = wide.clone()
    try:
        layer.merge(safe_merge=False)
        update = base.weight.data - wide
        layer.unmerge()
    finally:
        base.weight.data = kept
    return oriented(layer, update).float()
