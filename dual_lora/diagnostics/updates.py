"""The whole update that an adapter makes to a weight, of which PEFT's methods may report only a part."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def adapted_layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """Return the adapted linear layers by their name in the base model.

    Layers whose weight is not available (quantized, or split over processes) are left out.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            weight = getattr(module.get_base_layer(), "weight", None)
            if weight is None or hasattr(weight, "ds_id") or hasattr(weight, "placements"):
                continue
            if weight.ndim == 2 and weight.is_floating_point():
                found[name.removeprefix("base_model.model.")] = module
    return found


def oriented(layer: BaseTunerLayer, weight: Tensor) -> Tensor:
    """Return a weight of the layer as (out, in): GPT-2's Conv1D stores (in, out)."""
    return weight.T if isinstance(layer.get_base_layer(), Conv1D) else weight


@torch.no_grad()
def whole_update(layer: BaseTunerLayer) -> Tensor:
    """Return merged − frozen weight as float32 (out, in): everything the adapter does, including DoRA's magnitude.

    The frozen weight is float64 during the computation, so that no rounding of the sum raises the update's rank. It is
    the same tensor as before afterwards. For PiSSA the frozen weight is the residual, not the pretrained weight.
    """
    base = layer.get_base_layer()
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
