"""The settings of a run: composed from `configs/` by Hydra (`compose`), checked and frozen (`schema`).

Nothing here loads torch; the errors that a user can fix are in `errors`, and loading those needs no other package: the
commands on adapters work without the suite's libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from dual_lora.config.errors import ConfigError, DataError, ModelError, legal_values, nearest

if TYPE_CHECKING:
    from dual_lora.config.launch_settings import LaunchConfig
    from dual_lora.config.protocol_settings import BaseConfig, DecodingConfig, ProtocolConfig
    from dual_lora.config.schema import (
        MNLI_STARTED,
        DataConfig,
        Dimensions,
        MethodConfig,
        ModelConfig,
        OptimizerConfig,
        ProfileConfig,
        RecipeConfig,
        RunConfig,
        TaskConfig,
    )

_NAMES = {
    "launch_settings": ("LaunchConfig",),
    "protocol_settings": ("BaseConfig", "DecodingConfig", "ProtocolConfig"),
    "schema": (
        *("MNLI_STARTED", "DataConfig", "Dimensions", "MethodConfig", "ModelConfig", "OptimizerConfig"),
        *("ProfileConfig", "RecipeConfig", "RunConfig", "TaskConfig"),
    ),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"dual_lora.config.{_HOME[name]}"), name)
    raise AttributeError(f"module 'dual_lora.config' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
