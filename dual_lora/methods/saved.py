"""Adapters that PEFT saved, trained here or elsewhere."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from dual_lora.config import ConfigError


def adapter_hash(folder: Path) -> str:
    """Return the sha256 of a saved adapter's files. Raises `ConfigError` if the folder has no safetensors adapter."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        path = folder / name
        if not path.is_file():
            other = folder / "adapter_model.bin"
            hint = "; a pickled adapter_model.bin is not loaded: save it as safetensors" if other.is_file() else ""
            raise ConfigError(f"adapter={folder}: {name} is missing; save_pretrained writes it{hint}")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def with_adapter(model: Any, folder: Path) -> Any:
    """Return the model with the adapter, in evaluation mode. Raises `ConfigError` if the two do not fit."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, str(folder)).eval()
        except (RuntimeError, ValueError, UserWarning, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"adapter={folder} does not fit this model ({first[:300]}); choose the model= it was trained on "
                f"(its adapter_config.json names {_base_name(folder)})"
            ) from None


def _base_name(folder: Path) -> str:
    values = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return repr(values.get("base_model_name_or_path"))
