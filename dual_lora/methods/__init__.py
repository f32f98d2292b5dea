"""Methods: from a `MethodConfig` to a model that trains what the method trains, its optimizer and its callbacks.

Counting (`planned_parameters`, `with_budget`) imports no torch, so that a plan is printed at once; the rest is imported
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dual_lora.methods.application import apply, callbacks, check_settings, peft_config
    from dual_lora.methods.budget import Budget, with_budget
    from dual_lora.methods.checks import check, check_ranks, check_sharded, check_task, check_zero_stage
    from dual_lora.methods.counts import planned_parameters, trainable_parameters
    from dual_lora.methods.merging import export_merged, merged
    from dual_lora.methods.optimizers import create_optimizer
    from dual_lora.methods.weights import frozen_adapter_state, load_trainable_state, stored_state, trainable_state

_NAMES = {
    "application": ("apply", "callbacks", "check_settings", "peft_config"),
    "budget": ("Budget", "with_budget"),
    "checks": ("check", "check_ranks", "check_sharded", "check_task", "check_zero_stage"),
    "counts": ("planned_parameters", "trainable_parameters"),
    "merging": ("export_merged", "merged"),
    "optimizers": ("create_optimizer",),
    "weights": ("frozen_adapter_state", "load_trainable_state", "stored_state", "trainable_state"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"dual_lora.methods.{_HOME[name]}"), name)
    raise AttributeError(f"module 'dual_lora.methods' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
