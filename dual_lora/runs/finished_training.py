"""A training that ended before its run did: what it leaves in the run's folder, and how the run goes on from it."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from dual_lora import methods
from dual_lora.distributed import processes
from dual_lora.records import file_sha256, read_json, replacing, write_json
from dual_lora.training.result import TrainingResult

logger = logging.getLogger(__name__)


def read(folder: Path, model: torch.nn.Module) -> TrainingResult | None:
    """Load the result of a training that ended before the run did."""
    found = read_json(folder / "trained.json", _trained)
    if found is None:
        return None
    result, hashes = found
    for name, sha256 in hashes.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            logger.warning("%s is damaged; training continues from its last checkpoint", folder / name)
            return None
    result.selected = {name: folder / file for name, file in result.selected.items()}
    methods.load_trainable_state(model, load_file(folder / "last.safetensors", device="cpu"))
    logger.info("training is already finished; continuing with evaluation")
    return result


def keep(folder: Path, model: torch.nn.Module, result: TrainingResult) -> None:
    """Write weights and adapter, and last the result, by which it is known that the training has ended."""
    state = methods.trainable_state(model)  # every process takes part: sharded weights are gathered
    frozen = methods.frozen_adapter_state(model)
    if processes.is_main():
        with replacing(folder / "last.safetensors") as part:
            save_file(state, part)
        if hasattr(model, "peft_config"):
            whole = None
            if processes.is_partitioned(model):
                # Its parameters are empty. Buffers are whole in every process; VeRA's have a name in each layer.
                whole = {**dict(model.named_buffers(remove_duplicate=False)), **frozen, **state}
            model.save_pretrained(folder / "adapter", state_dict=whole)
        values = asdict(result)
        values["selected"] = {name: str(file.relative_to(folder)) for name, file in result.selected.items()}
        kept = ["last.safetensors", *values["selected"].values()]
        values["sha256"] = {name: file_sha256(folder / name) for name in kept}
        write_json(folder / "trained.json", values)
    processes.barrier()


def _trained(values: Any) -> tuple[TrainingResult, dict[str, str]]:
    """Return the result in a trained.json and the SHA-256 of its files. Raises one of `records.UNREADABLE`."""
    hashes = TypeAdapter(dict[str, str]).validate_python(values.pop("sha256"))
    TypeAdapter(TrainingResult).validate_python(values)
    if hashes.keys() != {"last.safetensors", *values["selected"].values()}:
        raise ValueError(f"it has hashes of {', '.join(hashes) or 'no file'}")
    return TrainingResult(**values), hashes
