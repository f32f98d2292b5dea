"""A small cell on any number of processes, and what has to be the same on all of them.

Bound: losses within 2e-5 relative of one process, over all steps; sums in another order differ by less (float32, tiny
LLaMA, no dropout; a few 1e-7 were measured). Scores and written replies are equal outright at these sizes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dual_lora.launch import launch
from dual_lora.records.per_item import unpacked
from tests.small_cells import config, only_record

BOUND = 2e-5
BOUND_BFLOAT16 = 5e-3  # 8 bits, and sums in another order
TWO = ("launch.num_gpus=2", "launch.per_device_batch=4")
FOUR = ("launch.num_gpus=4", "launch.per_device_batch=2")
DEEPSPEED = ("launch=deepspeed", *TWO)
GROUPS = {
    "two processes": ("launch=torchrun", *TWO),
    "two processes and accumulation": ("launch=torchrun", "launch.num_gpus=2", "launch.per_device_batch=2"),
    "FSDP": ("launch=fsdp", *TWO),
    "FSDP and accumulation": ("launch=fsdp", "launch.num_gpus=2", "launch.per_device_batch=2"),
    "FSDP, checkpointing": ("launch=fsdp", *TWO, "launch.gradient_checkpointing=true"),
    "ZeRO-0": (*DEEPSPEED, "launch.zero_stage=0"),
    "ZeRO-1": (*DEEPSPEED, "launch.zero_stage=1"),
    "ZeRO-2": ("launch=deepspeed", "launch.num_gpus=2", "launch.per_device_batch=2", "launch.zero_stage=2"),
    "ZeRO-3": (*DEEPSPEED, "launch.zero_stage=3"),
    "ZeRO-3, offloaded": (*DEEPSPEED, "launch.zero_stage=3", "launch.offload=true"),
}


def run(results: Path, checkpoint: Path, *launcher: str) -> dict:
    # Several batches of unequal lengths, and no number of processes of which each has as many rows as the others.
    words = ("profile.validation_examples=21", f"model.path={checkpoint}")
    assert launch([config(results, *launcher, *words)]) == 0
    return only_record(results)


def logged_rates(results: Path) -> list[tuple[int, float]]:
    """Return (step, learning rate) of what the Trainer logged."""
    [path] = (results / "runs").glob("*/curves.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["learning_rate"]) for line in lines if "learning_rate" in line]


def assert_same(record: dict, results: Path, alone: tuple[dict, Path]) -> None:
    expected, expected_results = alone
    assert record["identity"] == expected["identity"]
    assert record["execution"]["global_batch"] == expected["execution"]["global_batch"]
    followed = ["train_loss", "validation_loss", "gradient_norm"]
    if (record["execution"]["engine"], record["execution"]["zero_stage"]) == ("deepspeed", 0):
        followed.remove("gradient_norm")  # DeepSpeed clips there, but tells no norm
    for name in followed:
        own, its = record["curves"][name], expected["curves"][name]
        assert [step for step, _ in own] == [step for step, _ in its], name
        bound = BOUND if name != "validation_loss" else BOUND / 10  # its batches are the same on any machine
        assert [value for _, value in own] == pytest.approx([value for _, value in its], rel=bound), name
    assert logged_rates(results) == logged_rates(expected_results)
    for own, its in zip(record["scores"]["measurements"], expected["scores"]["measurements"], strict=True):
        exact = own["split"] == "test" or "loss" not in own["metrics"]
        metrics = its["metrics"] if exact else pytest.approx(its["metrics"], rel=BOUND / 10)
        assert own == {**its, "metrics": metrics}
    assert_same_items(record["scores"].get("per_item", {}), expected["scores"].get("per_item", {}))
    apart = {"measurements": None, "per_item": None}
    assert {**record["scores"], **apart} == {**expected["scores"], **apart}
    own, its = record["origin"]["predictions_sha256"], expected["origin"]["predictions_sha256"]
    assert own.keys() == its.keys()
    for name in own:
        if name.endswith("generate"):  # texts; the other files hold log-likelihoods, which differ in their last digits
            assert own[name] == its[name], name
    assert len(record["cost"]["peak_memory_bytes"]) == record["execution"]["world_size"]
    for name in ("trainable_parameters", "trainable_parameters_without_head", "total_parameters", "steps"):
        assert record["cost"][name] == expected["cost"][name], name
    run_id = record["identity"]["run_id"]
    adapted = (expected_results / "runs" / run_id / "adapter").exists()
    for file in ("last.safetensors", *(("adapter/adapter_model.safetensors",) if adapted else ())):
        own, its = (load_file(folder / "runs" / run_id / file) for folder in (results, expected_results))
        assert own.keys() == its.keys()
        for name in its:
            assert own[name].shape == its[name].shape, f"{name} is not whole"
            torch.testing.assert_close(own[name], its[name], rtol=1e-3, atol=2e-5)


def assert_same_items(own: dict, its: dict) -> None:
    assert own.keys() == its.keys()
    for name in its:
        assert own[name].keys() == its[name].keys()
        for metric, subsets in its[name].items():
            rows = [{subset: unpacked(text) for subset, text in part.items()} for part in (own[name][metric], subsets)]
            for subset in subsets:
                # Nats are float16: two that were equal to five digits may be rounded apart.
                bound = 2e-3 if metric == "loss" else 0
                np.testing.assert_allclose(rows[0][subset], rows[1][subset], rtol=bound, atol=0)
