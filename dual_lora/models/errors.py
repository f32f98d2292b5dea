"""The error of this package: a base model that cannot be used."""

from __future__ import annotations

from dual_lora.config import ConfigError


class ModelError(ConfigError):
    """A model that cannot be loaded; the message names what is wrong and the ways on."""
