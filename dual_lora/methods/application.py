"""Applying a method: which part of a loaded model is trained, through PEFT if it is an adapter."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback

from dual_lora import models
from dual_lora.config import ConfigError, MethodConfig, ModelConfig
from dual_lora.methods.adalora import RankAllocationCallback, allocation_schedule
from dual_lora.methods.checks import check, check_task, config_class
from dual_lora.models.head import head_modules
from dual_lora.tasks.base import Head
from dual_lora.tuner import DeltaWarmupCallback

log = logging.getLogger(__name__)

_TASK_TYPES = {"causal_lm": "CAUSAL_LM", "classification": "SEQ_CLS"}
_UNKNOWN_STEPS = 2**31  # AdaLoRA wants its schedule at creation; the callback sets the real one when training begins


def apply(
    model: nn.Module,
    method: MethodConfig,
    *,
    model_config: ModelConfig,
    head: Head,
    seed: int,
    kernel: str = "auto",
) -> nn.Module:
    """Make `model` train what the method trains; everything else is frozen.

    Args:
        model: a loaded transformers model; it is changed in place.
        seed: of the adapter's initial values. The global random state is left unchanged.
        kernel: how Dual LoRA computes (`RunConfig.kernel`); not part of the method, other methods ignore it.

    Returns:
        The model itself, or the `peft.PeftModel` around it.

    Raises:
        ConfigError: settings that fit no model (see `check`), target modules that this model does not have, a bias
            method on a model without biases, a head method where the task has no head.
    """
    check(method)
    check_task(method, head)
    if method.trains == "adapter":
        config = peft_config(method, model_config=model_config, head=head, seed=seed, kernel=kernel)
        return _apply_adapter(model, config, model_config, seed)
    heads = tuple(f"{name}." for name in head_modules(model))
    for name, parameter in model.named_parameters():
        trained = {
            "nothing": False,
            "head": name.startswith(heads),
            "biases": name.endswith("bias") or name.startswith(heads),
            "everything": True,
        }
        parameter.requires_grad_(trained[method.trains])
    if method.trains == "biases" and not any(name.endswith("bias") for name, _ in model.named_parameters()):
        raise ConfigError(
            f"method={method.name} trains biases, and model={model_config.name} ({model_config.family}) has none; "
            "choose another method, or a GPT-2, BERT, RoBERTa, DeBERTa or Qwen2 model"
        )
    return model


def _apply_adapter(model: nn.Module, config: PeftConfig, model_config: ModelConfig, seed: int) -> nn.Module:
    _check_targets(config, model_config)
    saved = list(getattr(config, "modules_to_save", None) or [])
    if hasattr(config, "modules_to_save") and head_modules(model):
        heads = [name.rpartition(".")[2] for name in head_modules(model)]
        config.modules_to_save = [*saved, *(name for name in heads if name not in saved)]
    # PEFT omits this if there is a task type; an adapter of the split GPT-2 has to name its base.
    config.auto_mapping = models.adapter_base_class(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    # PEFT adds "classifier" and "score" to any model; keep what exists, once: equal runs save equal files.
    if getattr(config, "modules_to_save", None):
        names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        config.modules_to_save = sorted(set(config.modules_to_save) & names)
    return adapted


def peft_config(
    method: MethodConfig, *, model_config: ModelConfig, head: Head, seed: int, kernel: str = "auto"
) -> PeftConfig:
    """Build the PEFT config of an adapter method. A setting of null means PEFT's own default.

    `target_modules` defaults to the model's. Frozen random projections (VeRA, RandLoRA) come from the run's seed,
    because a sweep over seeds should vary everything random.
    """
    cls = config_class(method)
    known = inspect.signature(cls).parameters
    settings: dict[str, Any] = {name: value for name, value in method.settings.items() if value is not None}
    if "target_modules" in known:
        settings.setdefault("target_modules", list(model_config.target_modules))
    if "kernel" in known:
        settings.setdefault("kernel", kernel)
    if "projection_prng_key" in known:
        settings.setdefault("projection_prng_key", seed)
    if "total_step" in known:
        settings.setdefault("total_step", _UNKNOWN_STEPS)
    if "fan_in_fan_out" in known and model_config.family == "gpt2":
        settings.setdefault("fan_in_fan_out", not model_config.split_fused_attention)
    try:
        return cls(**settings, task_type=_TASK_TYPES[head.kind])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"method={method.name}: {method.config_class} refuses its settings: {error}") from error


def check_settings(method: MethodConfig, model_config: ModelConfig, head: Head) -> None:
    """Refuse settings that PEFT's config refuses, and target modules that the model does not have, without weights.

    Raises `ConfigError`.
    """
    if method.trains != "adapter":
        return
    _check_targets(peft_config(method, model_config=model_config, head=head, seed=0), model_config)


def _check_targets(config: PeftConfig, model_config: ModelConfig) -> None:
    """Refuse target modules that match nothing. PEFT only complains if none of them matches."""
    if hasattr(config, "target_modules"):  # prompt methods have none
        targets = config.target_modules
        models.adapted_layer_shapes(model_config, sorted(targets) if isinstance(targets, set) else targets)


def callbacks(method: MethodConfig, total_steps: int | None = None) -> list[TrainerCallback]:
    """Return what the method does at optimizer steps, for `transformers.Trainer(callbacks=...)`.

    The callbacks read the number of steps when training begins; a given `total_steps` is checked now.
    """
    found: list[TrainerCallback] = []
    if method.delta_warmup or method.settings.get("direction_activation") == "annealed_sign":
        found.append(DeltaWarmupCallback(method.delta_warmup_steps if method.delta_warmup else 0))
    if method.config_class == "peft.AdaLoraConfig":
        steps = method.settings.get("tinit"), method.settings.get("tfinal")
        if total_steps is not None:
            allocation_schedule(total_steps, *steps)
        found.append(RankAllocationCallback(*steps))
    return found
