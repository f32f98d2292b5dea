"""What tells a training that it lacks the warm-up of ΔW, or what follows fp16's loss scale."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from dual_lora.tuner.config import DualLoraConfig
from dual_lora.tuner.layer import DualLoraLinear

LONG_TRAINING = 200  # calls in training after which a warm-up, if there is one, has been set


class TrainingWatch:
    """Warns once where a training lacks what runs the warm-up, and once where it lacks what follows fp16's loss scale.

    A hook before the calls of one layer: PEFT calls the tuner only if there is a `task_type`, and transformers'
    `model.add_adapter` keeps none. `configs` holds the settings of the model's adapters by name.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.configs: dict[str, DualLoraConfig] = {}

    @classmethod
    def of(cls, layer: DualLoraLinear) -> TrainingWatch:
        """Return the watch of `layer`, a new one if it has none."""
        found = next((hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, cls)), None)
        if found is None:
            found = cls()
            layer.register_forward_pre_hook(found)
        return found

    def __call__(self, layer: DualLoraLinear, inputs: Any) -> None:
        if torch.compiler.is_compiling() or not (layer.training and torch.is_grad_enabled()):
            return
        trained = [name for name in layer.active_adapters if self._is_trained(layer, name)]
        device = next(layer.parameters()).device.type
        if not trained or device == "meta":
            return
        self.calls += 1
        if self.calls == 1:
            _warn_of_fp16(layer, device)
        starts_at_base = all(self.configs[name].starts_at_base for name in trained)
        if self.calls == LONG_TRAINING and not layer.warmup_was_set and not starts_at_base:
            warnings.warn(
                f"{self.calls} training calls without a warm-up: the random start of Dual LoRA has disturbed "
                "the model from the first step on. Give the Trainer callbacks=[DeltaWarmupCallback()], or call "
                "dual_lora.set_delta_warmup(model, factor); a factor of 1 says that no warm-up is wanted.",
                stacklevel=2,
            )

    def _is_trained(self, layer: DualLoraLinear, name: str) -> bool:
        factors = layer.dual_lowrank_magnitude_A
        # By `parameters()`: under ZeRO-3 an attribute that is read during a forward pass is gathered and freed again.
        return name in self.configs and name in factors and any(p.requires_grad for p in factors[name].parameters())


def _warn_of_fp16(layer: DualLoraLinear, device: str) -> None:
    fp16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    if fp16 and layer.loss_scale == 1:
        warnings.warn(
            "Dual LoRA clips a gradient, and fp16 training multiplies it: give the Trainer "
            "callbacks=[DeltaWarmupCallback()], or call dual_lora.set_loss_scale(model, scaler.get_scale()) before "
            "each backward pass. bf16 needs neither.",
            stacklevel=3,
        )
