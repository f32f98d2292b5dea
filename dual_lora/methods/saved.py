"""Adapters that PEFT saved, trained here or elsewhere."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from dual_lora.config import ConfigError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_hash(folder: Path) -> str:
    """Return the sha256 of a saved adapter's files. Raises `ConfigError` if the folder has no safetensors adapter."""
    digest = hashlib.sha256()
    for name in (_CONFIG, _WEIGHTS):
        path = folder / name
        if not path.is_file():
            other = folder / "adapter_model.bin"
            hint = "; a pickled adapter_model.bin is not loaded: save it as safetensors" if other.is_file() else ""
            raise ConfigError(f"adapter={folder}: {name} is missing; save_pretrained writes it{hint}")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def with_adapter(model: Any, folder: Path) -> Any:
    """Return the model with the adapter, in evaluation mode.

    Raises `ConfigError`: a damaged file, numbers that are none, a tensor of the base model among the adapter's, or an
    adapter that does not fit this model, or not whole.
    """
    import torch
    from peft import PeftModel, set_peft_model_state_dict

    from dual_lora.methods.weights import stored_state

    said = settings(folder)
    named = repr(said.get("base_model_name_or_path"))
    if said.get("alora_invocation_tokens"):
        raise ConfigError(
            f"adapter={folder} acts only after its invocation tokens (aLoRA), which no prompt here has: the base model "
            "would be scored"
        )
    state = stored_state(folder / _WEIGHTS)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            adapted = PeftModel.from_pretrained(model, str(folder)).eval()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever PEFT makes of settings that somebody else wrote
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"adapter={folder} does not fit this model ({first[:300]}); choose the model= it was trained on "
                f"(its {_CONFIG} names {named})"
            ) from None
    _refuse_base_tensors(adapted, folder, set(state))
    surplus = set_peft_model_state_dict(
        adapted, dict(state)
    ).unexpected_keys  # PEFT itself leaves them out without a word
    if surplus:
        raise ConfigError(
            f"adapter={folder} does not fit this model: {len(surplus)} of its tensors have no place there, e.g. "
            f"{min(surplus)}; choose the model= it was trained on (its {_CONFIG} names {named})"
        )
    return adapted


def _refuse_base_tensors(model: Any, folder: Path, names: set[str]) -> None:
    """PEFT would load them into the base, so that other weights than `model=` names are scored."""
    biases = getattr(model.active_peft_config, "bias", "none") != "none"  # then they are trained, and the adapter's
    held = {name for name in names & model.state_dict().keys() if not (biases and name.endswith(".bias"))}
    if held:
        raise ConfigError(
            f"adapter={folder}: {_WEIGHTS} holds {len(held)} tensor(s) of the base model, e.g. {min(held)}, which "
            "would replace the weights that model= names; save the adapter with save_embedding_layers=False, or merge "
            "it and give the result as model.path"
        )


def settings(folder: Path) -> dict[str, Any]:
    """Return what an adapter's config says. Raises `ConfigError` if the file is damaged."""
    try:
        values = json.loads((folder / _CONFIG).read_text(encoding="utf-8"), parse_constant=_no_number)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"adapter={folder}: {_CONFIG} is damaged ({error}); save_pretrained writes it") from None
    return values


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number that an adapter can be scaled by")
