"""The settings of a run: composed from `configs/` by Hydra (`compose`), checked and frozen (`schema`).

Nothing here loads torch; the errors that a user can fix are in `errors`.
"""

from dual_lora.config.errors import ConfigError, DataError, ModelError, legal_values, nearest
from dual_lora.config.launch_settings import LaunchConfig
from dual_lora.config.schema import (
    MNLI_STARTED,
    BaseConfig,
    DataConfig,
    DecodingConfig,
    Dimensions,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    ProfileConfig,
    ProtocolConfig,
    RecipeConfig,
    RunConfig,
    TaskConfig,
)

__all__ = [
    "MNLI_STARTED",
    "BaseConfig",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DecodingConfig",
    "Dimensions",
    "LaunchConfig",
    "MethodConfig",
    "ModelConfig",
    "ModelError",
    "OptimizerConfig",
    "ProfileConfig",
    "ProtocolConfig",
    "RecipeConfig",
    "RunConfig",
    "TaskConfig",
    "legal_values",
    "nearest",
]
