"""The trained part of a model as plain tensors: saved for the selected checkpoint, restored for its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dual_lora.config import ConfigError
from dual_lora.distributed import sharding
from dual_lora.tuner.factor import STARTS, with_current_names


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return host copies of all trainable parameters by name. Where weights are split every rank has to call it."""
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with _whole(parameter):
                state[name] = sharding.whole(parameter.detach()).to("cpu", copy=True).contiguous()
    return state


def frozen_adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return host copies of what an adapter holds and never trains: Dual LoRA's start factors. As `trainable_state`."""
    state = {}
    for name, parameter in model.named_parameters():
        if any(f".{start}." in name for start in STARTS):
            with _whole(parameter):
                state[name] = sharding.whole(parameter.detach()).to("cpu", copy=True).contiguous()
    return state


def stored_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file on the host, under the names of today.

    Raises `ConfigError` naming a file that is damaged, or the tensor in it that holds a NaN, an infinite number or
    integers.
    """
    try:
        state = load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is damaged ({error}); copy it again, or save it again") from None
    wrong = next((name for name, tensor in state.items() if not _finite(tensor)), None)
    if wrong is not None:
        raise ConfigError(f"{path}: {wrong} holds NaN or infinite numbers: the training that wrote it had diverged")
    rounded = next(
        (name for name, one in state.items() if name.endswith(".weight") and not one.is_floating_point()), None
    )
    if rounded is not None:
        raise ConfigError(
            f"{path}: {rounded} holds integers ({state[rounded].dtype}): weights that were rounded or quantized after "
            "training; save them as floating-point numbers"
        )
    return with_current_names(state)


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def load_trainable_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Restore what `trainable_state` returned.

    Raises:
        ValueError: the names or shapes are not those of the model's trainable parameters.
    """
    state = with_current_names(state)
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if own.keys() != state.keys():
        different = sorted(own.keys() ^ state.keys())
        raise ValueError(f"weights of another method or model: {len(different)} names differ, e.g. {different[0]}")
    for name, parameter in own.items():
        with _whole(parameter), torch.no_grad():
            if parameter.shape != state[name].shape:
                raise ValueError(f"{name} has shape {tuple(parameter.shape)}, the file {tuple(state[name].shape)}")
            sharding.write(parameter, state[name])


def _whole(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """Gather a parameter that ZeRO-3 has partitioned."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
