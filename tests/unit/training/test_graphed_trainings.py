"""Whole trainings with graphs on a CPU, where a replay calls the recorded function on the graph's own buffers."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dual_lora.benchmarks.graphs import TINY
from dual_lora.benchmarks.suite_steps import make_config, make_model, train
from dual_lora.distributed import processes
from dual_lora.runs import leftovers, lifecycle
from dual_lora.runs.resolve import resolve
from dual_lora.training import trainer
from dual_lora.training.recorders import Recorder
from tests.small_cells import CLASSIFYING, WRITING, config, numbers, only_record

STEPS = ["profile.max_steps=4", "protocol.validation_every_steps=2"]
# No item is scored: what a score is of are the weights, and those are compared.
KINDS = {"writing": [*WRITING, "profile.test_items=0"], "classifying": CLASSIFYING}


@contextmanager
def doubled(graphed: bool) -> Iterator[None]:
    """Let batches be padded as on a GPU, and steps be computed on a graph's buffers, or not."""
    with ExitStack() as patches:
        for place, name, value in (
            (processes, "uses_gpu", lambda device: True),
            (trainer, "obstacle", lambda *_: None if graphed else "eager"),
            (trainer, "CudaRecorder", Recorder),
        ):
            patches.enter_context(mock.patch.object(place, name, value))
        yield


def trained(folder: Path, graphed: bool, words: Sequence[str], kind: str) -> Any:
    """Run a small cell and return its record and its weights."""
    with doubled(graphed):
        record = lifecycle.run(resolve(config(folder, *STEPS, *words, kind=KINDS[kind])))
    assert record["status"] == "finished", record
    [weights] = folder.rglob("last.safetensors")
    return record, load_file(weights)


def assert_same_bits(found: Any, expected: Any) -> None:
    (record, weights), (its, others) = found, expected
    assert numbers(record) == numbers(its)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("writing", ["method=lora"]),
        ("writing", ["method=dora", "launch.per_device_batch=2"]),
        ("writing", ["method=dual_lora", "launch.per_device_batch=4"]),
        ("writing", ["method=full"]),
        ("writing", ["method=vera", "method.r=8"]),
        ("writing", ["method=pissa", "model=tiny_gpt2"]),
        ("writing", ["method=lora", "method.lora_dropout=0.2", "launch.per_device_batch=2"]),
        ("writing", ["method=dual_lora", "launch.gradient_checkpointing=true"]),
        ("writing", ["method=dual_lora_annealed_sign", "launch.per_device_batch=4"]),
        ("classifying", ["method=lora"]),
        ("classifying", ["method=dual_lora", "model=tiny_deberta", "launch.per_device_batch=2"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else value,
)
def test_a_graphed_training_has_the_bits_of_an_eager_one(kind: str, words: list[str], tmp_path: Path) -> None:
    """Gradients are accumulated, and the model is validated in between."""
    eager = trained(tmp_path / "eager", False, words, kind)
    said = eager[0]["execution"]["graphs"]
    assert said["reason"] == "eager"
    assert "replays" not in said
    graphed = trained(tmp_path / "graphed", True, words, kind)
    report = graphed[0]["execution"]["graphs"]
    assert report["replays"] > 0
    assert report["reason"] is None
    assert report["validation"]["replays"] > 0
    assert report["validation"]["reason"] is None
    assert len(graphed[0]["curves"]["validation_loss"]) > 1
    assert_same_bits(graphed, eager)


def test_a_graphed_training_continues_from_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["method=lora", "method.lora_dropout=0.2", "launch.per_device_batch=4", "launch.keep_checkpoints=9"]
    words.append("profile.max_steps=9")
    monkeypatch.setattr(leftovers, "free", lambda *_: 0)  # what a run that is cut off leaves
    whole = trained(tmp_path, True, words, "writing")
    [folder] = (tmp_path / "runs").iterdir()
    later = [folder / "checkpoints" / f"checkpoint-{step}" for step in (6, 8, 9)]
    assert all(path.exists() for path in later)
    for path in later:
        shutil.rmtree(path)
    for path in (*(tmp_path / "records").glob("*.json"), folder / "trained.json"):
        path.unlink()
    continued = trained(tmp_path, True, words, "writing")
    assert continued[0]["execution"]["resumed_from"] == [4]
    assert continued[0]["execution"]["graphs"]["replays"] > 0
    assert_same_bits(continued, whole)


def one_of_two(rank: int, port: int, folder: Path, graphed: bool, words: Sequence[str]) -> None:
    os.environ.update(TORCHELASTIC_RUN_ID="two", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    AcceleratorState._reset_state(True)  # of the process that this one was forked from
    processes.join("cpu")
    with doubled(graphed):
        record = lifecycle.run(resolve(config(folder, *words, kind=KINDS["writing"])))
    assert record["status"] == "finished", record
    if graphed:
        assert record["execution"]["graphs"]["replays"] > 0
    processes.leave()


@pytest.mark.parametrize("per_device", [2, 4])
def test_two_processes_with_graphs_have_the_bits_of_two_without(per_device: int, tmp_path: Path) -> None:
    """They accumulate where a batch is 2. Where it is 4, one process that accumulates has the same bits as well."""
    words = ["method=dual_lora", f"launch.per_device_batch={per_device}"]
    found = {"alone": trained(tmp_path / "alone", False, words, "writing")} if per_device == 4 else {}
    words += [*STEPS, "launch=torchrun", "launch.num_gpus=2"]
    config(tmp_path, *words, kind=KINDS["writing"])  # composed once, for all
    for name in ("eager", "graphed"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = (port, tmp_path / name, name == "graphed", words)
        torch.multiprocessing.start_processes(one_of_two, given, nprocs=2, start_method="fork")
        [weights] = (tmp_path / name).rglob("last.safetensors")
        found[name] = only_record(tmp_path / name), load_file(weights)
        assert found[name][0]["execution"]["world_size"] == 2
    assert_same_bits(found["graphed"], found["eager"])
    if per_device == 4:
        assert found["graphed"][0]["curves"]["train_loss"] == found["alone"][0]["curves"]["train_loss"]
        assert all(torch.equal(tensor, found["alone"][1][name]) for name, tensor in found["graphed"][1].items())


def test_steps_drop_gradients_without_a_visit_of_all_modules(tmp_path: Path) -> None:
    """The Trainer asks the model to, once before the first step and after each."""
    size = {**TINY, "batch": 2, "length": 16, "answer": 4}
    settings = make_config("lora", size, "cpu", tmp_path)
    settings = replace(settings, profile=replace(settings.profile, max_steps=3))
    model = make_model(settings, "cpu")
    with mock.patch.object(torch.nn.Module, "zero_grad", autospec=True) as visit:
        train(model, settings, size, batches=4, dtype="float32", folder=tmp_path, callbacks=[])
    assert visit.call_count == 1
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "zero_grad" not in vars(model)
