"""Dual LoRA layers as differentiable functions: a definition, a tiled PyTorch path and fused Triton kernels.

Use `dual_lora_linear` where the frozen weight is available, `dual_lora_delta_linear` where it is not (quantized,
partitioned, input dropout), `delta_weight` for merging, `packed_once` around a decoding loop, and `select_kernel` to
learn which path a layer takes.
"""

from dual_lora.kernels import reference
from dual_lora.kernels.dispatch import KERNELS, KernelChoice, resolve_kernel, select_kernel
from dual_lora.kernels.factor_cache import packed_once
from dual_lora.kernels.linear import (
    apply_update,
    apply_update_with_dropout,
    delta_weight,
    dual_lora_delta_linear,
    dual_lora_linear,
    form_update,
)
from dual_lora.kernels.spec import (
    DIRECTION_ACTIVATIONS,
    MAGNITUDE_ACTIVATIONS,
    STE_VARIANTS,
    Update,
    UpdateSpec,
    update_spec,
)

__all__ = [
    "DIRECTION_ACTIVATIONS",
    "KERNELS",
    "MAGNITUDE_ACTIVATIONS",
    "STE_VARIANTS",
    "KernelChoice",
    "Update",
    "UpdateSpec",
    "apply_update",
    "apply_update_with_dropout",
    "delta_weight",
    "dual_lora_delta_linear",
    "dual_lora_linear",
    "form_update",
    "packed_once",
    "reference",
    "resolve_kernel",
    "select_kernel",
    "update_spec",
]
