"""How many steps a run has and how a global batch is made on a machine: arithmetic only, no torch.

The global batch is the recipe's and accumulation is derived: the number of devices never changes the experiment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dual_lora.config import ConfigError, MethodConfig, RecipeConfig, RunConfig
from dual_lora.config.launch_settings import LaunchConfig

_MAX_AUTO_DEVICE_BATCH = 16


@dataclass(frozen=True)
class Batches:
    """How a global batch is made on this machine."""

    global_batch: int
    per_device: int
    accumulation: int
    world_size: int


def plan_batches(config: RunConfig, world_size: int = 1) -> Batches:
    """Derive per-device batch and accumulation from the recipe's global batch.

    Raises `ConfigError` if the global batch is not a multiple of (per-device batch × processes).
    """
    total = config.recipe.global_batch
    asked = config.launch.per_device_batch
    if total % world_size:
        raise ConfigError(
            f"recipe.global_batch={total} cannot be split over {world_size} processes; "
            f"use a number of processes that divides it ({_divisors(total)})"
        )
    share = total // world_size
    if asked is None:
        asked = max(divisor for divisor in range(1, min(share, _MAX_AUTO_DEVICE_BATCH) + 1) if share % divisor == 0)
    if asked < 1 or share % asked:
        raise ConfigError(
            f"launch.per_device_batch={asked} does not divide recipe.global_batch={total} over {world_size} "
            f"process(es); legal: {_divisors(share)}"
        )
    return Batches(total, asked, share // asked, world_size)


def _divisors(number: int) -> str:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return ", ".join(map(str, sorted({*small, *(number // divisor for divisor in small)})))


def plan_steps(config: RunConfig, train_examples: int) -> tuple[int, int]:
    """Return (optimizer steps of the run, steps per epoch), bounded by the profile."""
    per_epoch = math.ceil(train_examples / config.recipe.global_batch)
    steps = math.ceil(per_epoch * config.recipe.epochs)
    if config.profile.max_steps is not None:
        steps = min(steps, config.profile.max_steps)
    return max(steps, 1), max(per_epoch, 1)


def plan_validation(config: RunConfig, steps: int, per_epoch: int) -> int:
    """Return after how many optimizer steps training validates, again and again; `config` is a resolved one."""
    every = config.protocol.validation_every_steps
    assert every != "recipe", "resolve() has put the recipe's number there"
    return min(every or per_epoch, steps)


def check_warmup(recipe: RecipeConfig) -> None:
    """Refuse a warm-up that is stated twice, of which one would have no effect. Raises `ConfigError`."""
    if recipe.warmup_steps and recipe.warmup_ratio:
        raise ConfigError(
            f"recipe.warmup_steps={recipe.warmup_steps} and recipe.warmup_ratio={recipe.warmup_ratio:g}: the steps "
            "hold and the ratio would have no effect; set one of them to 0"
        )


def plan_warmup(config: RunConfig, steps: int) -> int:
    """Return the steps of a run's learning-rate warm-up."""
    return warmup_steps(vars(config.recipe), vars(config.profile), steps)


def warmup_steps(recipe: Mapping[str, Any], profile: Mapping[str, Any], steps: int) -> int:
    """Return `plan_warmup` of settings as a record keeps them. A bounded run warms up for a tenth of its steps at most.

    So its schedule has the shape of the full run's.
    """
    asked: int = recipe["warmup_steps"] or math.ceil(recipe["warmup_ratio"] * steps)
    bounded = profile["max_steps"] is not None or profile["train_examples"] is not None
    return min(asked, math.ceil(0.1 * steps)) if bounded else asked


def planned_obstacle(launch: LaunchConfig, method: MethodConfig) -> str | None:
    """Return why settings alone say that a run's steps are no CUDA graphs, whatever the machine; None if they may be.

    Raises `ConfigError` if `launch.graphs=on` asks for them nevertheless.
    """
    if launch.graphs == "off":
        return "launch.graphs=off"
    found = None
    if launch.engine not in ("single", "torchrun"):
        found = f"launch.engine={launch.engine} moves weights or gradients between processes while it computes"
    elif (method.config_class or "").endswith(".AdaLoraConfig"):
        found = "AdaLoRA changes its ranks and its loss while it trains"
    if found is not None and launch.graphs == "on":
        raise ConfigError(f"launch.graphs=on: {found}; use launch.graphs=auto, or off")
    return found
