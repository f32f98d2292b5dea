"""Dual LoRA as a PEFT method: configuration, layer, model and the warm-up of its update. Importing registers it."""

import importlib
from typing import TYPE_CHECKING

from dual_lora.tuner.config import DualLoraConfig
from dual_lora.tuner.layer import DualLoraLinear
from dual_lora.tuner.model import DualLoraModel

if TYPE_CHECKING:
    from dual_lora.tuner.warmup import DeltaWarmupCallback, set_delta_warmup, set_loss_scale, warmup_factor

__all__ = [
    "DeltaWarmupCallback",
    "DualLoraConfig",
    "DualLoraLinear",
    "DualLoraModel",
    "set_delta_warmup",
    "set_loss_scale",
    "warmup_factor",
]


def __getattr__(name: str) -> object:
    # The callback extends transformers' Trainer, which imports PEFT, whose import imports this package.
    if name in __all__:
        return getattr(importlib.import_module("dual_lora.tuner.warmup"), name)
    raise AttributeError(f"module 'dual_lora.tuner' has no attribute {name!r}")
