"""The σ of the Gaussian start."""

from __future__ import annotations

import math

from torch import nn

from dual_lora.tuner.base_weight import root_mean_square
from dual_lora.tuner.config import DualLoraConfig


def resolve_init_std(config: DualLoraConfig, base: nn.Module) -> float | None:
    """Return σ for one layer: `init_std` itself, or the σ at which ‖ΔW(0)‖/‖W₀‖ = x for `init_std='relative:x'`.

    rms(U ⊙ V) in expectation over the Gaussian factors is σ²·√(r₁/2) for ReLU (half of the entries are 0; √r₁ without
    it), times σ²·√r₂ where V is P itself instead of its sign. Source: arithmetic; no public source states a σ.

    Returns None if the base weight is on the meta device, where the factors go too: they will be loaded.

    Raises:
        ValueError: the base weight is all zeros, so no σ has a size relative to it.
    """
    if base.weight.device.type == "meta":
        return None
    if not config.init_weights:
        return 1.0
    relative = config.relative_init_std()
    if relative is None:
        return float(config.init_std)
    base_rms = root_mean_square(base)
    if base_rms == 0:
        raise ValueError(
            f"init_std = {config.init_std!r} needs a base weight that is not all zeros, in {base}: give a number."
        )
    magnitude_rank = config.r_magnitude / 2 if config.magnitude_activation == "relu" else config.r_magnitude
    direction_rms = 1.0 if config.direction_activation == "sign" else math.sqrt(config.r_direction)
    power = 2 if config.direction_activation == "sign" else 4
    target = relative * base_rms
    return (target / (config.initial_scaling * math.sqrt(magnitude_rank) * direction_rms)) ** (1 / power)
