"""The warm-up of ΔW: a factor w in front of the update, rising linearly from 0 to 1 over the first optimizer steps.

The paper says only that a warm-up over the first few steps makes ΔW start at 0; shape and length are this project's
choice (docs/methods/dual_lora.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper  # accelerate.utils has it only next to DeepSpeed
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dual_lora.kernels import resolve_kernel
from dual_lora.kernels.spec import limit
from dual_lora.tuner.layer import DualLoraLinear

MAX_DEFAULT_STEPS = 100  # the learning-rate warm-up of the recipe that the paper follows (DoRA's); a guess for w


def default_warmup_steps(total_steps: int) -> int:
    """Return T = min(100, ⌈0.1·N⌉) for a training of N optimizer steps."""
    # A tenth: best of 0, 0.1, 0.4 and 0.8 of 250 steps in our pilot on SmolLM2-135M.
    return min(MAX_DEFAULT_STEPS, math.ceil(total_steps / 10))


def warmup_factor(completed_steps: int, warmup_steps: int) -> float:
    """Return w_k = min(1, k/T) for the step after k completed optimizer steps; 1 if T = 0."""
    return min(1.0, completed_steps / warmup_steps) if warmup_steps > 0 else 1.0


def set_delta_warmup(model: nn.Module, factor: float) -> None:
    """Set w on every Dual LoRA layer of `model`. Plain Python state: no tensor changes, no device waits.

    Raises:
        ValueError: `factor` is outside [0, 1], or `model` has no Dual LoRA layer.
    """
    if not 0 <= factor <= 1:
        raise ValueError(f"factor = {factor!r} must be in [0, 1]; 1 is the trained update.")
    _set(_some_layers(model), float(factor))


def _layers(model: nn.Module) -> list[DualLoraLinear]:
    return [module for module in model.modules() if isinstance(module, DualLoraLinear)]


def _some_layers(model: nn.Module) -> list[DualLoraLinear]:
    layers = _layers(model)
    if not layers:
        raise ValueError("the model has no Dual LoRA layer: call get_peft_model(model, DualLoraConfig(...)) first.")
    return layers


def _set(layers: Sequence[DualLoraLinear], factor: float) -> None:
    for layer in layers:
        layer.delta_warmup, layer.warmup_was_set = factor, True
    shared = {
        id(held): (held, layer.scaling[name]) for layer in layers for name, held in layer.scaling_in_memory.items()
    }
    for held, scaling in shared.values():
        _write(held, factor * scaling)


def _write(held: Tensor, scaling: float) -> None:
    held[0].fill_(scaling)  # the number goes along with the kernel: a copy from the host would wait for the device
    held[1].fill_(limit(scaling))


def set_loss_scale(model: nn.Module, scale: float) -> None:
    """Tell every Dual LoRA layer of `model` what the loss is multiplied by before the backward pass.

    fp16 training does so (`torch.amp.GradScaler`), and the clip of the straight-through gradient has to move with it:

        set_loss_scale(model, scaler.get_scale())
        scaler.scale(loss).backward()

    `DeltaWarmupCallback` does so in a Trainer.

    Raises:
        ValueError: `scale` is not a number above 0, or `model` has no Dual LoRA layer.
    """
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale = {scale!r} must be a number above 0; 1 is a loss that is not scaled.")
    for layer in _some_layers(model):
        layer.loss_scale = float(scale)


def follows_recorded(model: nn.Module) -> Callable[[], bool]:
    """Return what tells whether a recorded step of `model` does what a step of now does: all layers have the same w.

    It has that w while w is 1, as when it was recorded, and where the kernels read it from memory. A step whose layers
    are watched by hooks, which a recording does not call, is not one that a recording repeats.
    """
    layer = next((module for module in model.modules() if isinstance(module, DualLoraLinear)), None)
    return lambda: (
        layer is None or (not layer._forward_hooks and (layer.delta_warmup == 1.0 or bool(layer.scaling_in_memory)))
    )


@contextmanager
def scaling_in_memory(model: nn.Module) -> Iterator[None]:
    """Let the kernels of `model` read w · s₀ from its device inside: a recorded step then follows the warm-up.

    Layers with equal s₀ share two numbers. No effect where the generic kernel would compute a layer.
    """
    layers = _layers(model)
    shared: dict[tuple[torch.device, float], Tensor] = {}
    if all(_reads_memory(layer) for layer in layers):
        for layer in layers:
            for name, scaling in layer.scaling.items():
                device = layer.factors(name)[0].device
                held = shared.setdefault((device, scaling), torch.empty(2, dtype=torch.float32, device=device))
                layer.scaling_in_memory[name] = held
                _write(held, layer.delta_warmup * scaling)
    try:
        yield
    finally:
        for layer in layers:
            layer.scaling_in_memory.clear()


def _reads_memory(layer: DualLoraLinear) -> bool:
    devices = {tensor.device for tensor in layer.adapter_tensors()}
    kernels = {resolve_kernel(spec.kernel, device) for spec in layer.spec.values() for device in devices}
    return kernels <= {"fused", "reference"}


class DeltaWarmupCallback(TrainerCallback):
    """Runs the warm-up in a `transformers.Trainer`.

    w_k is set when an optimizer step begins, from the number k of completed steps, and goes back to 1 when the step
    ends: whatever happens between steps (validation, saving, a best checkpoint, a resume) sees the adapter as it would
    be loaded. `state.global_step` counts optimizer steps, not forward passes, and survives a restart. Under fp16 the
    callback also tells the layers what the loss is multiplied by. An annealed Sign gets its temperature t_k = 1 − k/N
    in the same way, by a number on the device, and is Sign between the steps.

    Args:
        warmup_steps: T; 0 for no warm-up; None for min(100, ⌈0.1·N⌉) of the N optimizer steps of the training.

    `resolved_warmup_steps` holds T once training has begun.
    """

    def __init__(self, warmup_steps: int | None = None) -> None:
        if warmup_steps is not None and (not isinstance(warmup_steps, int) or warmup_steps < 0):
            raise ValueError(f"warmup_steps = {warmup_steps!r} must be a whole number of at least 0, or None.")
        self.warmup_steps = warmup_steps
        self.resolved_warmup_steps: int | None = warmup_steps
        self._layers: list[DualLoraLinear] = []  # finding them visits every module
        self._temperatures: dict[torch.device, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if self.warmup_steps is None:
            self.resolved_warmup_steps = default_warmup_steps(state.max_steps)
        set_delta_warmup(given["model"], 1.0)
        self._layers = _layers(given["model"])
        devices = {layer.adapter_tensors()[0].device for layer in self._annealed()}
        self._temperatures = {device: torch.ones((), device=device) for device in devices}
        if args.fp16 and isinstance(given.get("optimizer"), DeepSpeedOptimizerWrapper):
            raise ValueError(
                "fp16 multiplies the loss, under DeepSpeed by a number that Dual LoRA cannot read: its clip of a "
                "gradient would act at the wrong size. Use bf16=True, or fp16 without DeepSpeed."
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        assert self.resolved_warmup_steps is not None
        factor = warmup_factor(state.global_step, self.resolved_warmup_steps)
        if factor < 1:
            _set(self._layers, factor)
        for held in self._temperatures.values():
            held.fill_(1 - state.global_step / state.max_steps)
        for layer in self._annealed():
            layer.temperature = self._temperatures[layer.adapter_tensors()[0].device]
        # accelerate's optimizer has it; None where nothing scales the loss, as on a CPU.
        scaler = getattr(given.get("optimizer"), "scaler", None) if args.fp16 else None
        if scaler is not None:
            scale = scaler.get_scale()
            for layer in self._layers:
                layer.loss_scale = scale

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        assert self.resolved_warmup_steps is not None
        # The step that just ended began one global step ago.
        if warmup_factor(state.global_step - 1, self.resolved_warmup_steps) < 1:
            _set(self._layers, 1.0)
        for layer in self._annealed():
            layer.temperature = None

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        _set(self._layers, 1.0)
        for layer in self._layers:
            layer.loss_scale, layer.temperature = 1.0, None

    def _annealed(self) -> list[DualLoraLinear]:
        return [
            layer
            for layer in self._layers
            if any(spec.direction_activation == "annealed_sign" for spec in layer.spec.values())
        ]
