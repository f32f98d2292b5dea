"""Graphed steps on a GPU: the bits of steps without graphs, and their memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dual_lora.benchmarks.graphs import measure
from dual_lora.launch import launch
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve
from tests.small_cells import config, numbers, only_record

pytestmark = pytest.mark.gpu
TWO = ("launch=torchrun", "launch.num_gpus=2", "launch.per_device_batch=4")
SIZE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_layers": 4, "num_heads": 16, "num_key_value_heads": 16,
    "vocab_size": 32000, "batch": 16, "length": 112, "answer": 10, "eager": 14, "graph": 14,
}  # fmt: skip


def assert_same_bits(results: Path) -> None:
    """Compare the runs in `results`/off and `results`/on; the second has replayed graphs."""
    records = {way: only_record(results / way) for way in ("off", "on")}
    report = records["on"]["execution"]["graphs"]
    assert report["replays"] > 0
    assert report["reason"] is None
    assert numbers(records["on"]) == numbers(records["off"])
    found, expected = (load_file(next((results / way).rglob("last.safetensors"))) for way in ("on", "off"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def cell(results: Path, way: str, *words: str) -> Any:
    words = ("launch.device=cuda", "model.dtype=bfloat16", *words)
    return config(results / way, "protocol.validation_every_steps=2", f"launch.graphs={way}", *words)


@pytest.mark.parametrize(
    "words",
    [
        ("method=lora", "method.lora_dropout=0.2"),
        ("method=dora", "launch.per_device_batch=2"),
        ("method=dual_lora", "launch.per_device_batch=4"),
        ("method=dual_lora", "method.dropout=0.2", "method.delta_warmup_steps=5"),
        ("method=dual_lora_annealed_sign",),
        ("method=dual_lora_zero_start",),
        ("method=dual_lora_normalised",),
    ],
    ids="-".join,
)
def test_graphs_have_the_bits_of_eager_steps(words: tuple[str, ...], tmp_path: Path) -> None:
    """Random numbers, accumulation and validation in between, as in test_graphed_trainings.py without a GPU."""
    for way in ("off", "on"):
        record = lifecycle.run(resolve(cell(tmp_path, way, *words)))
        assert record["status"] == "finished", record.get("message")
    assert_same_bits(tmp_path)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("method", ["lora", "dual_lora"])
def test_graphs_on_two_gpus_have_the_bits_of_eager_steps(method: str, tmp_path: Path) -> None:
    for way in ("off", "on"):
        assert launch([cell(tmp_path, way, f"method={method}", *TWO)]) == 0
    assert_same_bits(tmp_path)


@pytest.mark.parametrize("method", ["lora", "dora", "dual_lora"])
def test_graphs_take_at_most_a_twentieth_more_memory(method: str) -> None:
    found = measure(method, SIZE, "cuda")
    assert found["graph"]["graphs"]["replays"] > 0
    for kind in ("peak_GiB", "reserved_GiB"):
        assert found["graph"][kind] <= 1.05 * found["eager"][kind], kind
