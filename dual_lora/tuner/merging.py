"""Merging an update into the base weight, and taking it back exactly.

W₀ + ΔW rounded to the base's dtype cannot be undone by subtracting ΔW: already in float32 the last bits differ. So a
merged layer keeps W₀, in host memory where the weight is on an accelerator (a merged 7B model then costs its adapted
weights once more in host memory, and nothing on the card). `merge_and_unload` drops the copy layer by layer.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dual_lora.tuner.base_weight import is_quantized, is_whole

if TYPE_CHECKING:
    from dual_lora.tuner.layer import DualLoraLinear


@torch.no_grad()
def merge(layer: DualLoraLinear, adapter_names: list[str], safe_merge: bool) -> None:
    """Write round(W + Σ ΔW) over the base weight, in place; the sum is formed in float32.

    Warns when the warm-up w is not 1, because the merged weight is then not the trained one.

    Raises:
        NotImplementedError: the base weight is quantized, or only a part of it lies in this process.
        ValueError: with `safe_merge`, if the merged weight is not finite; the base weight is then untouched.
    """
    weight = _mergeable_weight(layer)
    if layer.delta_warmup != 1:
        warnings.warn(
            f"merging at warm-up factor {layer.delta_warmup}, so only this share of the update is merged; call "
            "dual_lora.set_delta_warmup(model, 1) first to merge what was trained.",
            stacklevel=4,
        )
    # The sum is wider than the weight for half precision, and float64 stays float64.
    merged = weight.to(torch.promote_types(weight.dtype, torch.float32))
    for name in adapter_names:
        merged = merged + layer.get_delta_weight(name).to(merged.device)
    merged = merged.to(weight.dtype)
    if safe_merge and not torch.isfinite(merged).all():
        raise ValueError(f"NaNs detected in the merged weights. The adapters {adapter_names} seem to be broken")
    if layer._unmerged_weight is None:
        layer._unmerged_weight = _host_copy(weight)
    weight.copy_(merged)
    layer.merged_adapters.extend(adapter_names)


@torch.no_grad()
def unmerge(layer: DualLoraLinear) -> None:
    """Copy W₀ back over the merged weight, bit for bit."""
    if not layer.merged:
        warnings.warn("Already unmerged. Nothing to do.", stacklevel=4)
        return
    assert layer._unmerged_weight is not None
    _mergeable_weight(layer).copy_(layer._unmerged_weight)
    layer._unmerged_weight = None
    layer.merged_adapters.clear()


def _host_copy(weight: Tensor) -> Tensor:
    return weight.cpu() if weight.device.type != "cpu" else weight.clone()


def _mergeable_weight(layer: DualLoraLinear) -> Tensor:
    base = layer.get_base_layer()
    fix = "Save the adapter, load the base in floating point in one process with PeftModel.from_pretrained, merge there"
    if is_quantized(base):
        raise NotImplementedError(
            f"cannot merge into a quantized {type(base).__name__}: the result would have to be quantized anew. {fix}."
        )
    if not is_whole(base):
        raise NotImplementedError(
            f"cannot merge into a weight of shape {tuple(base.weight.shape)}, of which this process holds only a part "
            f"(ZeRO-3, FSDP or tensor parallelism). {fix}."
        )
    return base.weight.data
