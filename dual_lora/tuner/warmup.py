"""The warm-up of ΔW: a factor w in front of the update, rising linearly from 0 to 1 over the first optimizer steps.

The paper says only that a warm-up over the first few steps makes ΔW start at 0; shape and length are this project's
choice (docs/methods/dual_lora.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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
    layers = [module for module in model.modules() if isinstance(module, DualLoraLinear)]
    if not layers:
        raise ValueError("the model has no Dual LoRA layer: call get_peft_model(model, DualLoraConfig(...)) first.")
    for layer in layers:
        layer.delta_warmup = float(factor)


def warms_up(model: nn.Module) -> Callable[[], bool]:
    """Return what tells whether w of the Dual LoRA layers of `model`, which all have the same, is below 1 now."""
    layer = next((module for module in model.modules() if isinstance(module, DualLoraLinear)), None)
    return lambda: layer is not None and layer.delta_warmup != 1.0


class DeltaWarmupCallback(TrainerCallback):
    """Runs the warm-up in a `transformers.Trainer`.

    w_k is set when an optimizer step begins, from the number k of completed steps, and goes back to 1 when the step
    ends: whatever happens between steps (validation, saving, a best checkpoint, a resume) sees the adapter as it would
    be loaded. `state.global_step` counts optimizer steps, not forward passes, and survives a restart.

    Args:
        warmup_steps: T; 0 for no warm-up; None for min(100, ⌈0.1·N⌉) of the N optimizer steps of the training.

    `resolved_warmup_steps` holds T once training has begun.
    """

    def __init__(self, warmup_steps: int | None = None) -> None:
        if warmup_steps is not None and (not isinstance(warmup_steps, int) or warmup_steps < 0):
            raise ValueError(f"warmup_steps = {warmup_steps!r} must be a whole number of at least 0, or None.")
        self.warmup_steps = warmup_steps
        self.resolved_warmup_steps: int | None = warmup_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.warmup_steps is None:
            self.resolved_warmup_steps = default_warmup_steps(state.max_steps)
        set_delta_warmup(kwargs["model"], 1.0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.resolved_warmup_steps is not None
        factor = warmup_factor(state.global_step, self.resolved_warmup_steps)
        if factor < 1:
            set_delta_warmup(kwargs["model"], factor)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.resolved_warmup_steps is not None
        # The step that just ended began one global step ago.
        if warmup_factor(state.global_step - 1, self.resolved_warmup_steps) < 1:
            set_delta_warmup(kwargs["model"], 1.0)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        set_delta_warmup(kwargs["model"], 1.0)
