"""Checks of a method that need no weights."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import typing
from collections.abc import Sequence
from typing import Any

from dual_lora.config import ConfigError, MethodConfig, legal_values
from dual_lora.config.words import SET_BY_THE_SUITE, of_no_method
from dual_lora.methods.counts import LayerShape, adapter_parameters, rank_names
from dual_lora.tasks.base import Head

GALORE_INSTALL = "pip install 'dual-lora[galore]'   (or: pip install galore-torch bitsandbytes)"
# VeRA scales frozen random projections, and more of them than a layer has directions is meant (arXiv 2310.11454: 1024).
_RANK_OF_NO_LAYER = ("peft.VeraConfig",)
_NUMBERS = (int, float)
_RANKS = ("r", "init_r", "target_r")
# PEFT configs and optimizers that read whole gradients in training, and the ZeRO stage from which there are none:
# AdaLoRA reads `grad` after the step, GaLore projects the gradient of a whole matrix within it.
_WHOLE_GRADIENTS = {"peft.AdaLoraConfig": 0, "galore_adamw": 1}
OPTIMIZER_SETTINGS: dict[str, dict[str, Any]] = {
    # direction_rate: learning rate of Dual LoRA's C and D / that of A and B; null: the same.
    "adamw_torch": {"direction_rate": None},
    # ratio: λ = learning rate of B / learning rate of A (arXiv 2402.12354); embedding_lr: PEFT's default.
    "lora_plus": {"ratio": 16.0, "embedding_lr": 1e-6},
    # The Trainer's own defaults for `optim_args`, arXiv 2403.03507; target_modules: the linear layers it projects.
    "galore_adamw": {"rank": 128, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std", "target_modules": None},
}


def check(method: MethodConfig) -> None:
    """Refuse a method that cannot be applied to any model.

    Raises:
        ConfigError: an unknown setting, an unknown config class, a rank below 1, a missing package. The message names
            the value, the legal ones and the fix.
    """
    if method.trains == "adapter":
        _check_adapter(method)
    elif method.settings:
        raise ConfigError(
            f"method={method.name} trains {method.trains} and has no PEFT config, so it takes no settings; "
            f"remove {', '.join(f'method.{name}' for name in method.settings)}"
        )
    _check_optimizer(method)


def check_ranks(method: MethodConfig, layers: Sequence[LayerShape]) -> None:
    """Refuse a rank that a layer cannot have: a matrix of 576 × 192 has at most 192.

    A method whose number of parameters no longer grows there takes what fits by itself (PiSSA). Raises `ConfigError`.
    """
    if method.trains != "adapter" or method.config_class in _RANK_OF_NO_LAYER or not layers:
        return
    smallest = min(layers, key=lambda layer: min(layer[1:]))
    name, limit = smallest[0], min(smallest[1:])
    for rank in rank_names(method):
        value = method.settings.get(rank)
        if not isinstance(value, int) or value <= limit:
            continue
        counts = [adapter_parameters(method, [smallest], {rank: number}) for number in (limit, value)]
        if counts[0] != counts[1]:
            raise ConfigError(
                f"method.{rank}={value}: {name} has {smallest[1]} inputs and {smallest[2]} outputs, so its update has "
                f"rank {limit} at most, of all that method={method.name} adapts; use method.{rank}={limit} or less, or "
                "leave that layer out of method.target_modules"
            )


def check_task(method: MethodConfig, head: Head) -> None:
    """Refuse a method that trains a classification head for a task that has none. Raises `ConfigError`."""
    if method.trains == "head" and head.kind != "classification":
        raise ConfigError(
            f"method={method.name} trains the classification head alone, and a task that generates has none; use a "
            "classification task (task=glue/rte and the like), or another method (method=none is the base as it is)"
        )


def check_zero_stage(method: MethodConfig, stage: int) -> None:
    """Refuse a method that reads whole gradients at a ZeRO stage of DeepSpeed that has none. Raises `ConfigError`."""
    for what in (method.config_class, method.optimizer.name):
        if stage >= _WHOLE_GRADIENTS.get(what or "", 4):
            raise ConfigError(
                f"method={method.name} ({what}) reads whole gradients, which DeepSpeed at launch.zero_stage={stage} "
                "does not keep; use launch=torchrun"
            )


def check_sharded(method: MethodConfig) -> None:
    """Refuse a method whose optimizer needs whole matrices where processes hold some rows. Raises `ConfigError`."""
    if method.optimizer.name == "galore_adamw":
        raise ConfigError(
            f"method={method.name} (galore_adamw) projects the gradients of whole matrices, of which launch=fsdp "
            "leaves every process some rows; use launch=torchrun"
        )


def config_class(method: MethodConfig) -> type:
    """Import the class that `config_class` names, e.g. `peft.LoraConfig`. Raises `ConfigError`."""
    path = method.config_class
    if not path or "." not in path:
        raise ConfigError(
            f"method.config_class={path!r} of method={method.name}: a method with trains=adapter names the import path "
            "of a PEFT config, e.g. peft.LoraConfig or mypackage.MyConfig"
        )
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the latter two for names that begin with a dot
        raise ConfigError(
            f"method.config_class={path} cannot be imported ({error}); install the package that defines it, or put its "
            "folder on PYTHONPATH"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        legal = [other for other in dir(module) if other.endswith("Config")]
        raise ConfigError(f"method.config_class={path}: {module_name} has no {name}{legal_values(name, legal)}")
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"method.config_class={path} is not a PEFT config (a dataclass derived from peft.PeftConfig)")
    return found


def _check_adapter(method: MethodConfig) -> None:
    cls = config_class(method)
    legal = sorted(field.name for field in dataclasses.fields(cls) if field.name not in SET_BY_THE_SUITE)
    for name in method.settings:
        if name not in legal:
            raise ConfigError(
                f"method={method.name} ({method.config_class}) has no setting {name!r}"
                f"{of_no_method(name, (), method.config_class)}"
            )
    _check_values(method, cls)
    ranks = {name for name in method.settings if name in _RANKS or name.startswith("r_")}
    ranks |= set(rank_names(method)) & set(method.settings)
    values = {name: method.settings[name] for name in sorted(ranks)} | _of_layers(method, "rank_pattern")
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"method.{name}={value!r}: a rank is a whole number of at least 1")
    first, last = method.settings.get("init_r"), method.settings.get("target_r")
    if first is not None and last is not None and last >= first:
        raise ConfigError(f"method.target_r={last} must be below method.init_r={first}: AdaLoRA prunes down to it")


def _check_values(method: MethodConfig, cls: type) -> None:
    """Refuse what is no number, switch or text where PEFT's config has one; it takes anything and fails much later."""
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError):  # a class of somebody's own, whose annotations name what is not there
        hints = {}
    for name, value in method.settings.items():
        kinds = set(typing.get_args(hints.get(name)) or (hints.get(name),)) - {type(None)}
        [kind] = kinds if len(kinds) == 1 else [None]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        wanted = None
        if value is None:
            continue
        if "dropout" in name and kind in _NUMBERS:
            wanted = None if number and 0 <= value < 1 else "a number of at least 0 and below 1"
        elif name in ("alpha", "lora_alpha"):
            wanted = None if number and value > 0 else "a number above 0"
        elif kind in _NUMBERS:
            wanted = None if number else "a number"
        elif kind is bool:
            wanted = None if isinstance(value, bool) else "true or false"
        elif isinstance(value, str) and str not in kinds and (words := _words(hints.get(name))):
            known = any(value.startswith(word.partition("[")[0]) if "[" in word else value == word for word in words)
            wanted = None if known else f"{', '.join(words[:-1])} or {words[-1]}"
        if wanted:
            raise ConfigError(f"method.{name}={value!r}: it must be {wanted}")
    for name, value in _of_layers(method, "alpha_pattern").items():
        if isinstance(value, bool) or not isinstance(value, _NUMBERS) or not value > 0:
            raise ConfigError(f"method.{name}={value!r}: it must be a number above 0")


def _of_layers(method: MethodConfig, name: str) -> dict[str, Any]:
    """Return the values that a setting has for some layers, by their full names."""
    found = method.settings.get(name)
    return {f"{name}.{layers}": value for layers, value in found.items()} if isinstance(found, dict) else {}


def _words(hint: Any) -> list[str]:
    """Return the words that a type has, as in `bool | Literal["gaussian", "pissa_niter_[number of iters]"]`."""
    parts = typing.get_args(hint)
    inner = [word for part in parts for word in _words(part)]
    return inner + (
        [part for part in parts if isinstance(part, str)] if typing.get_origin(hint) is typing.Literal else []
    )


def _check_optimizer(method: MethodConfig) -> None:
    optimizer = method.optimizer
    legal = OPTIMIZER_SETTINGS[optimizer.name]
    for name in optimizer.settings:
        if name not in legal:
            raise ConfigError(
                f"{optimizer.name} has no setting method.optimizer.settings.{name}{legal_values(name, legal)}"
            )
    rate = optimizer.settings.get("direction_rate")
    if rate is not None and method.config_class != "dual_lora.DualLoraConfig":
        raise ConfigError(
            f"method.optimizer.settings.direction_rate={rate}: method={method.name} has no direction group"
        )
    if rate is not None and (not isinstance(rate, _NUMBERS) or isinstance(rate, bool) or not rate > 0):
        raise ConfigError(f"method.optimizer.settings.direction_rate={rate!r}: it must be a number above 0")
    if optimizer.name == "lora_plus" and optimizer.settings.get("ratio", 16.0) < 1:
        raise ConfigError(f"method.optimizer.settings.ratio={optimizer.settings['ratio']}: LoRA+ asks for at least 1")
    if optimizer.name == "galore_adamw" and importlib.util.find_spec("galore_torch") is None:
        raise ConfigError(f"method={method.name} needs the package galore-torch. Install it: {GALORE_INSTALL}")
