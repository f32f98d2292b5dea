"""A checkpoint read into a sharded model: of each weight a process reads the rows that it keeps, and no other.

A model of hundreds of gigabytes is in no host's memory as a whole this way, and in no process's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel

from dual_lora.distributed import sharding
from dual_lora.models.sources import weight_files


def read(
    auto_class: Any,
    folder: Path,
    config: Any,
    new: tuple[str, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[PreTrainedModel, list[str]] | None:
    """Make a model whose weights are shards and fill it from safetensors files; call it in every process of the group.

    Args:
        auto_class: transformers' class that makes the model from its config.
        new: prefixes of the weights of a task head, which are in no file and are drawn afterwards.
        dtype: of the weights, whatever the files hold.
        device: on which this process computes.

    Returns:
        The model and the names in the files that it has no place for. None if the files do
        not name their weights as the model does: transformers then has to read them whole and convert them.
    """
    with init_empty_weights(include_buffers=False):
        model = auto_class.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    places = {name: file for file in weight_files(folder) for name in safe_open(file, "pt").keys()}  # noqa: SIM118  # it is no dict
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    wanted = [name for name in shapes if not name.startswith(new)]
    persistent = set(model.state_dict()) - set(shapes)
    if any(not _fits(places, name, shapes[name]) for name in wanted) or persistent & set(places):
        return None
    sharding.shard(model, device.type)
    state = {}
    for name, parameter in model.named_parameters():
        if name in wanted:
            part = own_part(places[name], name, parameter).to(device, dtype)
            state[name] = sharding.rows_as(parameter, part) if isinstance(parameter, DTensor) else part
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model, sorted(set(places) - set(model.state_dict()))


def _fits(places: dict[str, Path], name: str, shape: torch.Size) -> bool:
    if name not in places:
        return False
    with safe_open(places[name], "pt") as file:
        return tuple(file.get_slice(name).get_shape()) == tuple(shape)


def own_part(file: Path, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """Return the rows of a tensor in `file` that this process keeps of `parameter`: all of them if it is whole."""
    with safe_open(file, "pt") as opened:
        if not isinstance(parameter, DTensor):
            return opened.get_tensor(name)
        return opened.get_slice(name)[sharding.own_slice(parameter)]
