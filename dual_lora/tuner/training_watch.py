"""What tells a training that it lacks the warm-up of ΔW, or what follows fp16's loss scale."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from dual_lora.tuner.config import DualLoraConfig
from dual_lora.tuner.layer import DualLoraLinear

LONG_TRAINING = 200  # calls in training, where no optimizer of torch has the layer's own factors (ZeRO, FSDP1)


class TrainingWatch:
    """Warns once where a training lacks what runs the warm-up, and once where it lacks what follows fp16's loss scale.

    A hook before the calls of one layer: PEFT calls the tuner only if there is a `task_type`, and transformers'
    `model.add_adapter` keeps none. A training shows by the steps of the optimizer that has the layer's factors: calls
    alone may be an evaluation that left the model in training mode. It lacks a warm-up from the first step on for which
    the default one is longer than one step, which moves nothing. `configs` holds the settings of the model's adapters
    by name, `loaded` the names of those that came with trained factors.
    """

    def __init__(self) -> None:
        self.calls = self.steps = 0
        self.warned = False
        self.configs: dict[str, DualLoraConfig] = {}
        self.loaded: set[str] = set()

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
        if any(name not in self.loaded and not self.configs[name].starts_at_base for name in trained):
            _watch_steps_of(layer, self)
            if self.calls == LONG_TRAINING:
                self._warn(layer, f"{self.calls} training calls")

    def after_step(self, layer: DualLoraLinear) -> None:
        """Count a step of the optimizer that has the layer's factors."""
        # Not above: it imports transformers' Trainer, which imports PEFT, which may be what imports this.
        from dual_lora.tuner.warmup import default_warmup_steps

        self.steps += 1
        if default_warmup_steps(self.steps) > 1:
            self._warn(layer, f"{self.steps} optimizer steps")

    def _warn(self, layer: DualLoraLinear, what: str) -> None:
        if self.warned or layer.warmup_was_set:
            return
        self.warned = True
        warnings.warn(
            f"{what} without a warm-up: the random start of Dual LoRA has disturbed the model from the first step on. "
            "Give the Trainer callbacks=[DeltaWarmupCallback()], or call dual_lora.set_delta_warmup(model, factor) "
            "before each step; a factor of 1 says that no warm-up is wanted, as by an adapter that is already trained.",
            stacklevel=3,
        )

    def _is_trained(self, layer: DualLoraLinear, name: str) -> bool:
        factors = layer.dual_lowrank_magnitude_A
        # By `parameters()`: under ZeRO-3 an attribute that is read during a forward pass is gathered and freed again.
        return name in self.configs and name in factors and any(p.requires_grad for p in factors[name].parameters())


_watched: WeakKeyDictionary[DualLoraLinear, TrainingWatch] = WeakKeyDictionary()
_registered: list[Any] = []  # the hook of all optimizers, once a layer is watched


def _watch_steps_of(layer: DualLoraLinear, watch: TrainingWatch) -> None:
    if not watch.warned and not layer.warmup_was_set:
        _watched[layer] = watch
        if not _registered:
            _registered.append(register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: Optimizer, *given: Any) -> None:
    if torch.compiler.is_compiling() or not _watched:
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for layer, watch in list(_watched.items()):
        if watch.warned or layer.warmup_was_set:
            del _watched[layer]
        elif any(id(parameter) in stepped for parameter in layer.parameters()):
            watch.after_step(layer)


def _warn_of_fp16(layer: DualLoraLinear, device: str) -> None:
    fp16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    if fp16 and layer.loss_scale == 1:
        warnings.warn(
            "Dual LoRA clips a gradient, and fp16 training multiplies it: give the Trainer "
            "callbacks=[DeltaWarmupCallback()], or call dual_lora.set_loss_scale(model, scaler.get_scale()) before "
            "each backward pass. bf16 needs neither.",
            stacklevel=3,
        )
