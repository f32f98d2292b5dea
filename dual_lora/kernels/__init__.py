"""Dual LoRA layers as differentiable functions: a definition, a tiled PyTorch path and fused Triton kernels.

Use `dual_lora_linear` where the frozen weight is at hand, `dual_lora_delta_linear` where it is not (quantized,
partitioned, input dropout), `delta_weight` for merging, `packed_once` around a decoding loop, and `select_kernel` to
learn which path a layer takes.
"""

from dual_lora.kernels import reference
from dual_lora.kernels.kept import packed_once
from dual_lora.kernels.linear import delta_weight, dual_lora_delta_linear, dual_lora_linear
from dual_lora.kernels.rule import (
    DIRECTION_ACTIVATIONS,
    MAGNITUDE_ACTIVATIONS,
    STE_VARIANTS,
    UpdateRule,
    update_rule,
)
from dual_lora.kernels.select import KERNELS, KernelChoice, resolve_kernel, select_kernel

__all__ = [
    "DIRECTION_ACTIVATIONS",
    "KERNELS",
    "MAGNITUDE_ACTIVATIONS",
    "STE_VARIANTS",
    "KernelChoice",
    "UpdateRule",
    "delta_weight",
    "dual_lora_delta_linear",
    "dual_lora_linear",
    "packed_once",
    "reference",
    "resolve_kernel",
    "select_kernel",
    "update_rule",
]
