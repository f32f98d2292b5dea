"""The models that ship, as their YAML describes them."""

from __future__ import annotations

import yaml
from pydantic import TypeAdapter

from dual_lora.config import ModelConfig
from tests import ROOT

FOLDER = ROOT / "configs" / "model"


def model_config(name: str, **changes: object) -> ModelConfig:
    return TypeAdapter(ModelConfig).validate_python(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) | changes)
