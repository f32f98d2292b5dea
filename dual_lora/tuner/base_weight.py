"""The frozen weight under an adapter: quantized, partitioned or whole, and its norm, which sets the initial σ."""

from __future__ import annotations

import itertools
import math
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils.integrations import dequantize_module_weight, gather_params_ctx
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dual_lora.tuner.config import DualLoraConfig
from dual_lora.tuner.quantized import dequantized, is_quantized


def device_of(base: nn.Module) -> torch.device | None:
    """Return the device of the layer's weight, whatever a quantization calls it."""
    held = getattr(base, "weight", None)
    tensors = itertools.chain([] if held is None else [held], base.parameters(), base.buffers())
    return next((tensor.device for tensor in tensors), None)


def is_partitioned(base: nn.Module) -> bool:
    """Return whether this process may hold only a part of the weight (ZeRO-3, FSDP, tensor parallelism)."""
    weight = base.weight
    # FSDP with flat parameters puts plain tensors (views) where the module had parameters.
    return hasattr(weight, "ds_id") or hasattr(weight, "placements") or not isinstance(weight, nn.Parameter)


def is_available(base: nn.Module) -> bool:
    """Return whether a call of the adapted layer, and its backward pass, may read the full weight.

    A partitioned weight cannot be read unless its whole transformer block is fetched and freed as one, for the length
    of the block's passes: by FSDP2 (`dual_lora.distributed.sharding`), or as one of DeepSpeed's leaf modules
    (`dual_lora.distributed.deepspeed.gather_whole_blocks`).
    """
    in_block = hasattr(base.weight, "ds_z3_leaf_module") or getattr(base, "whole_while_its_block_computes", False)
    return not is_partitioned(base) or in_block


def is_whole(base: nn.Module) -> bool:
    """Return whether the full weight is in this process, now (also inside a ZeRO-3 gathering context)."""
    out_first = not isinstance(base, Conv1D)
    in_features, out_features = _get_in_out_features(base)
    shape = (out_features, in_features) if out_first else (in_features, out_features)
    return not hasattr(base.weight, "placements") and tuple(base.weight.shape) == tuple(shape)


def mergeable_weight(base: nn.Module, backend: Any | None = None) -> Tensor:
    """Return the weight that an update can be added to, in place unless `backend` has dequantized it.

    Raises:
        NotImplementedError: it is quantized in a way that PEFT cannot write, or only a part of it is in this process.
    """
    fix = "Save the adapter, load the base in floating point in one process with PeftModel.from_pretrained, merge there"
    if is_quantized(base):
        if backend is None or not backend.supports_merge:
            raise NotImplementedError(
                f"cannot merge into a quantized {type(base).__name__}: this PEFT ({peft.__version__}) cannot quantize "
                f"the sum again. {fix}."
            )
        return dequantized(base, backend)
    if not is_whole(base):
        raise NotImplementedError(
            f"cannot merge into a weight of shape {tuple(base.weight.shape)}, of which this process holds only a "
            f"part (ZeRO-3, FSDP or tensor parallelism). {fix}."
        )
    weight: Tensor = base.weight.data
    return weight


@torch.no_grad()
def root_mean_square(base: nn.Module, backend: Any | None = None) -> float:
    """Return rms(W₀), gathering a partitioned weight and dequantizing a quantized one. Collective under ZeRO-3."""
    with gather_params_ctx(list(base.parameters(recurse=False)), modifier_rank=None):
        if backend is not None:
            weight = dequantized(base, backend)
        else:
            weight = dequantize_module_weight(base) if is_quantized(base) else base.weight.detach()
        if hasattr(weight, "full_tensor"):
            weight = weight.full_tensor()
        return weight.float().square().mean().sqrt().item()


def resolve_init_std(config: DualLoraConfig, base: nn.Module, backend: Any | None = None) -> float | None:
    """Return σ for one layer: `init_std` itself, or the σ at which ‖ΔW(0)‖/‖W₀‖ = x for `init_std='relative:x'`.

    rms(U ⊙ V) in expectation over the Gaussian factors is σ²·√(r₁/2) for ReLU (half of the entries are 0; √r₁ without
    it), times σ²·√r₂ where V is P itself instead of its sign. Source: arithmetic; no public source states a σ.

    Returns None if the base weight is on the meta device, where the factors go too: they will be loaded.

    Raises:
        ValueError: a size relative to a base weight that is all zeros, or quantized in a way that PEFT cannot read.
    """
    if device_of(base) == torch.device("meta"):
        return None
    if not config.init_weights:
        return 1.0
    relative = config.relative_init_std()
    if relative is None:
        return float(config.init_std)
    if backend is not None and not backend.supports_merge:
        raise ValueError(
            f"init_std = {config.init_std!r} needs a weight that PEFT can read, not {base}'s: give a number."
        )
    base_rms = root_mean_square(base, backend)
    if base_rms == 0:
        raise ValueError(
            f"init_std = {config.init_std!r} needs a base weight that is not all zeros, in {base}: give a number."
        )
    magnitude_rank = config.r_magnitude / 2 if config.magnitude_activation != "identity" else config.r_magnitude
    direction_rms = math.sqrt(config.r_direction) if config.direction_activation == "identity" else 1.0
    power = 4 if config.direction_activation == "identity" else 2
    target = relative * base_rms
    return (target / (config.initial_scaling * math.sqrt(magnitude_rank) * direction_rms)) ** (1 / power)
