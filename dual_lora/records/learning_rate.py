"""The learning rate of each step, which follows from a record's recipe and steps and is therefore not stored in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dual_lora.config.schedule import warmup_steps


def learning_rates(record: Mapping[str, Any]) -> list[list[float]]:
    """Return [step, rate] for each step of a record's loss curve: what the optimizer made that step with.

    The rate is the recipe's times transformers' schedule (`get_scheduler`); in a method with several rates (LoRA+) the
    recipe's is the first. Eight significant digits, as in every curve of a record.
    """
    recipe, profile = record["identity"].get("recipe", {}), record["identity"].get("profile", {})
    steps = record["cost"].get("steps", 0)
    return [
        [step, float(f"{recipe['learning_rate'] * _share(recipe, profile, steps, step - 1):.8g}")]
        for step, _ in record["curves"].get("train_loss", [])
    ]


def _share(recipe: Mapping[str, Any], profile: Mapping[str, Any], steps: int, done: int) -> float:
    """Return the part of the recipe's rate after so many steps are done."""
    warmup, schedule = warmup_steps(recipe, profile, steps), recipe["schedule"]
    if done < warmup:
        return done / warmup
    left = (steps - done) / max(1, steps - warmup)
    shares = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1.0 - math.cos(math.pi * left))}
    return max(0.0, shares[schedule])
