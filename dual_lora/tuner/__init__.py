"""Dual LoRA as a PEFT method: configuration, layer, model and the warm-up of its update. Importing registers it."""

from dual_lora.tuner.config import DualLoraConfig
from dual_lora.tuner.layer import DualLoraLinear
from dual_lora.tuner.model import DualLoraModel
from dual_lora.tuner.warmup import DeltaWarmupCallback, set_delta_warmup, warmup_factor

__all__ = [
    "DeltaWarmupCallback",
    "DualLoraConfig",
    "DualLoraLinear",
    "DualLoraModel",
    "set_delta_warmup",
    "warmup_factor",
]
