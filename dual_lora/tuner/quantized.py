"""A frozen weight that is quantized: how it is recognized, read, and written again by PEFT's `QuantizationBackend`."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import peft.utils
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dual_lora.tuner.layer import DualLoraLinear

MERGEABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def is_quantized(base: nn.Module) -> bool:
    """Return whether the weight is stored as something other than plain floating point (bitsandbytes, GPTQ, float8).

    The tensors of torchao and quanto say that they are float32 or bfloat16, but are classes of their own.
    """
    weight = getattr(base, "weight", None)
    if weight is None or weight.dtype not in MERGEABLE_DTYPES:
        return True
    return type(weight) not in (Tensor, nn.Parameter) and not hasattr(weight, "placements")


def quantization_backend(base: nn.Module, model: nn.Module) -> Any | None:
    """Return PEFT's `QuantizationBackend`, which reads and writes the quantized weight of `base`, a layer of `model`.

    None for a plain weight, for one that PEFT does not know (quanto), and before PEFT 0.21, which has none.
    """
    if not is_quantized(base) or not hasattr(peft.utils, "resolve_quantization_backend"):
        return None
    try:
        return peft.utils.resolve_quantization_backend(base, **peft.utils.get_quantization_kwargs(model))
    except ValueError:  # torchao's, without the settings by which it could be quantized again
        return None


def dequantized(base: nn.Module, backend: Any) -> Tensor:
    """Return the weight (out, in) that `base` stands for."""
    base.state_dict()  # bitsandbytes: where a CPU's evaluation has packed 4 bits anew, only this unpacks them
    weight: Tensor = backend.get_base_weight(base)
    return weight


def write_quantized(layer: DualLoraLinear, weight: Tensor) -> None:
    """Quantize `weight` (out, in) as the base of `layer` was, in a copy of it; warn, since that rounds."""
    assert layer.quantization_backend is not None
    bias = layer.get_base_layer().bias
    warnings.warn(
        f"merging into a quantized {type(layer.get_base_layer()).__name__} rounds the sum to the quantization's steps: "
        "the merged model computes nearly what the adapter did. Merge into the base in floating point and quantize "
        "that, where you can.",
        stacklevel=4,
    )
    if not layer.unmerged_layer:
        layer.unmerged_layer.append(layer.base_layer)
        layer.base_layer = copy.deepcopy(layer.base_layer)
    layer.quantization_backend.set_base_weight(layer, weight)
    layer.get_base_layer().bias = bias  # PEFT's backend of HQQ leaves it out
