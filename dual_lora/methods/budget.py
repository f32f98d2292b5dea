"""Equal budgets: the rank at which a method trains a requested number of parameters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from dual_lora.config import ConfigError, MethodConfig, legal_values
from dual_lora.config.choices import method_values, options
from dual_lora.config.schema import with_settings_apart
from dual_lora.methods.counts import LayerShape, adapter_parameters, planned_parameters, rank_names

# Settings that move with the rank, so that the scale of the update (α/r) stays the method's, and AdaLoRA's final rank.
_FOLLOWERS = ("lora_alpha", "alpha", "randlora_alpha", "target_r")


@dataclasses.dataclass(frozen=True)
class Budget:
    """A budget and the ranks that meet it best."""

    wanted: int  # trainable parameters without head
    got: int
    ranks: dict[str, int]

    @property
    def relative_error(self) -> float:
        """(got − wanted) / wanted."""
        return (self.got - self.wanted) / self.wanted


def with_budget(method: MethodConfig, layer_shapes: Iterable[LayerShape]) -> tuple[MethodConfig, Budget | None]:
    """Return the method at the rank nearest `method.budget`, and the resulting budget; without one the method and None.

    Several ranks (r_magnitude, r_direction) keep their proportion. α moves with the rank, except under rank-stabilised
    scaling (`use_rslora`), where a fixed α is the method's point. Of two ranks equally near, the smaller is taken.

    Args:
        layer_shapes: name, in and out features of each adapted layer. `like:METHOD@RANK` counts METHOD on the same.

    Raises:
        ConfigError: a budget that is neither a number nor names a method, or a method without ranks.
    """
    if method.budget is None:
        return method, None
    shapes = list(layer_shapes)
    wanted = _wanted(method.budget, shapes)
    names = [name for name in rank_names(method) if isinstance(method.settings.get(name), int)]
    if not names:
        raise ConfigError(
            f"method.budget={method.budget}: method={method.name} has no rank to solve for; remove method.budget"
        )
    base = {name: method.settings[name] for name in names}
    ranks = _nearest(method, base, wanted, shapes)
    solved = dataclasses.replace(method, settings=method.settings | ranks | _followers(method, base, ranks))
    return solved, Budget(wanted, planned_parameters(solved, shapes), ranks)


def _nearest(method: MethodConfig, base: dict[str, int], wanted: int, shapes: list[LayerShape]) -> dict[str, int]:
    """Try every rank up to the largest layer: RandLoRA's count rises and falls with its rank."""
    largest = max(max(i, o) for _, i, o in shapes)
    lead = max(base.values())
    leading = np.arange(1, largest + 1)
    candidates = {name: np.maximum(1, np.rint(rank / lead * leading)).astype(np.int64) for name, rank in base.items()}
    counts = adapter_parameters(method, shapes, candidates)
    best = int(np.argmin(np.abs(counts - wanted)))  # the first among equals: the smaller rank
    return {name: int(values[best]) for name, values in candidates.items()}


def _wanted(budget: str | int, shapes: list[LayerShape]) -> int:
    text = str(budget)
    if re.fullmatch(r"[0-9][0-9_]*", text):
        if int(text) < 1:
            raise ConfigError(f"method.budget={budget}: at least 1 trainable parameter")
        return int(text)
    match = re.fullmatch(r"like:([A-Za-z0-9_]+)@([0-9]+)", text)
    if not match:
        raise ConfigError(f"method.budget={budget!r}: give a number of parameters or like:METHOD@RANK (like:lora@32)")
    name, rank = match.group(1), int(match.group(2))
    reference = read_method(name)
    names = rank_names(reference)
    if len(names) != 1 or rank < 1:
        raise ConfigError(
            f"method.budget={budget!r}: METHOD needs exactly one rank, and that at least 1; {name} has "
            f"{', '.join(names) or 'none'}. Use like:lora@RANK"
        )
    settings = reference.settings | {names[0]: rank}
    return planned_parameters(dataclasses.replace(reference, settings=settings), shapes)


def read_method(name: str) -> MethodConfig:
    """Read a shipped method's YAML, without Hydra. Raises `ConfigError` for an unknown name."""
    if name not in options("method"):
        raise ConfigError(f"unknown method {name!r}{legal_values(name, options('method'))}")
    return MethodConfig(**with_settings_apart(method_values(name)))


def _followers(method: MethodConfig, base: dict[str, int], ranks: dict[str, int]) -> dict[str, Any]:
    lead = max(base, key=lambda name: base[name])
    factor = ranks[lead] / base[lead]
    found: dict[str, Any] = {}
    for name in _FOLLOWERS:
        value = method.settings.get(name)
        if not isinstance(value, (int, float)) or (name != "target_r" and method.settings.get("use_rslora")):
            continue
        scaled = value * factor
        found[name] = max(1, round(scaled)) if name == "target_r" else int(scaled) if scaled.is_integer() else scaled
    return found
