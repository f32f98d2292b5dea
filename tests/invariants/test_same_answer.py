"""The machine never changes the experiment: processes, accumulation and ZeRO stages give the same curves and scores."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from safetensors.torch import load_file

from dual_lora import models
from dual_lora.launch import launch
from dual_lora.tasks.base import Head
from tests.forked_groups import fork_groups
from tests.same_answer import BOUND, BOUND_BFLOAT16, FOUR, GROUPS, assert_same, run
from tests.small_cells import CLASSIFYING, config, only_record


def test_accumulation(alone, checkpoint, tmp_path):
    record = run(tmp_path, checkpoint, "launch.per_device_batch=2")
    assert record["execution"]["accumulation"] == 4
    assert_same(record, tmp_path, alone)


GENERATE = "task.scorings=[generate]"  # each forward pass gathers every weight: ranking as well takes a minute


@pytest.fixture(scope="module")
def writing_alone(checkpoint, tmp_path_factory) -> tuple[dict, Path]:
    results = tmp_path_factory.mktemp("writing_alone")
    return run(results, checkpoint, GENERATE), results


@pytest.mark.parametrize("name", ["ZeRO-3", "FSDP"])
def test_partitioned_over_two_processes(name, writing_alone, checkpoint, tmp_path, monkeypatch):
    """The hardest of each launcher stands for all in the short tests: weights are split."""
    fork_groups(monkeypatch)
    record = run(tmp_path, checkpoint, *GROUPS[name], GENERATE)
    assert record["execution"]["engine"] == ("deepspeed" if name == "ZeRO-3" else "fsdp")
    assert record["execution"]["zero_stage"] == (3 if name == "ZeRO-3" else 0)
    assert record["execution"]["world_size"] == 2
    assert_same(record, tmp_path, writing_alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_groups(name, alone, checkpoint, tmp_path):
    assert_same(run(tmp_path, checkpoint, *GROUPS[name]), tmp_path, alone)


IN_ORDER = {"DDP": ("launch=torchrun",), "FSDP": ("launch=fsdp",)}
ZERO = {
    "ZeRO-0": ("launch=deepspeed", "launch.zero_stage=0"),
    "ZeRO-2": ("launch=deepspeed", "launch.zero_stage=2"),
    "ZeRO-3": ("launch=deepspeed", "launch.zero_stage=3"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in IN_ORDER), ("FSDP", "bfloat16")],
)
def test_four_processes_train_as_one_to_the_last_bit(name, dtype, checkpoint, tmp_path):
    """Each takes one of the micro-batches that one process takes in turn; every step is clipped."""
    words = ("profile.test_items=0", "profile.max_steps=12", f"model.dtype={dtype}", "recipe.max_grad_norm=0.05")
    records = [run(tmp_path / "alone", checkpoint, "launch.per_device_batch=2", *words)]
    records.append(run(tmp_path / "group", checkpoint, *IN_ORDER[name], *FOUR, *words))
    assert {record["execution"]["dtype"] for record in records} == {dtype}
    assert [record["execution"]["accumulation"] for record in records] == [4, 1]
    assert records[0]["identity"] == records[1]["identity"]
    assert records[0]["curves"]["train_loss"] == records[1]["curves"]["train_loss"]
    states = [load_file(next((tmp_path / name / "runs").glob("*/last.safetensors"))) for name in ("alone", "group")]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in ZERO), ("ZeRO-3", "bfloat16")])
def test_four_processes_of_deepspeed_train_as_one_within_the_bound(name, dtype, checkpoint, tmp_path):
    """Its sums are in an order of its own."""
    words, records = ("profile.test_items=0", "profile.max_steps=12", f"model.dtype={dtype}"), []
    for folder, more in (("alone", ("launch.per_device_batch=2",)), ("group", (*ZERO[name], *FOUR))):
        records.append(run(tmp_path / folder, checkpoint, *more, *words))
    assert records[0]["identity"] == records[1]["identity"]
    curves = [[loss for _, loss in record["curves"]["train_loss"]] for record in records]
    assert curves[1] == pytest.approx(curves[0], rel=BOUND if dtype == "float32" else BOUND_BFLOAT16)


@pytest.mark.slow
def test_the_methods_own_optimizer_under_deepspeed(checkpoint, tmp_path):
    """The Trainer drops one that it is given: LoRA+ was trained at LoRA's rates."""
    words, curves = ("method=lora_plus", "profile.test_items=0"), []
    for name, more in (("alone", ()), ("group", GROUPS["ZeRO-2"]), ("LoRA", ("method=lora",))):
        curves.append([loss for _, loss in run(tmp_path / name, checkpoint, *words, *more)["curves"]["train_loss"]])
    assert curves[1] == pytest.approx(curves[0], rel=BOUND)
    assert curves[2] != pytest.approx(curves[0], rel=BOUND)


@pytest.mark.slow
def test_an_adapter_of_shared_projections_is_saved_whole_of_partitions(checkpoint, tmp_path):
    """VeRA's layers share two matrices, which a model names many times: a run ended where it was to save them."""
    words, saved = ("method=vera", "profile.test_items=0"), []
    for name, more in (("alone", ()), ("partitioned", GROUPS["ZeRO-3"])):
        run(tmp_path / name, checkpoint, *words, *more)
        saved.append(load_file(next((tmp_path / name / "runs").glob("*/adapter/adapter_model.safetensors"))))
    assert any("vera_A" in key for key in saved[0])
    assert saved[0].keys() == saved[1].keys()
    for key, tensor in saved[0].items():
        torch.testing.assert_close(saved[1][key], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_gpus(name, checkpoint, tmp_path):
    """The curves alone: scores are sums of float32 that a GPU adds up in another order for another batch."""
    words, curves = ("launch.device=cuda", "model.dtype=float32"), []
    records = [run(tmp_path / "alone", checkpoint, *words), run(tmp_path / "group", checkpoint, *GROUPS[name], *words)]
    assert records[0]["identity"] == records[1]["identity"]
    assert len(records[1]["cost"]["peak_memory_bytes"]) == 2
    for record in records:
        curves.append([value for kind in ("train_loss", "validation_loss") for _, value in record["curves"][kind]])
    assert curves[1] == pytest.approx(curves[0], rel=BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two processes and accumulation", "ZeRO-3"])
def test_classifier(name, tmp_path):
    """With a head that is trained beside the adapter, and a loss that is a mean over rows and not over tokens."""
    loaded = models.load(config(tmp_path, kind=CLASSIFYING).model, Head("classification", 2), dtype="float32", seed=0)
    for dropout in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        setattr(loaded.model.config, dropout, 0.0)  # each process would draw its own
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    words, records = (f"model.path={tmp_path / 'model'}",), []
    for folder, launcher in (("alone", ()), ("group", GROUPS[name])):
        assert launch([config(tmp_path / folder, *launcher, *words, kind=CLASSIFYING)]) == 0
        records.append(only_record(tmp_path / folder))
    assert_same(records[1], tmp_path / "group", (records[0], tmp_path / "alone"))


@pytest.mark.slow
def test_bfloat16_base_partitioned_over_two_processes(checkpoint, tmp_path):
    """Factors stay float32 whatever the base is; replies may differ where bfloat16 sums tie, curves hardly."""
    words = (f"model.path={checkpoint}", "model.dtype=bfloat16")
    curves, factors = [], []
    for name, launcher in (("alone", ()), ("partitioned", GROUPS["ZeRO-3"])):
        assert launch([config(tmp_path / name, *launcher, *words)]) == 0
        record = only_record(tmp_path / name)
        assert record["execution"]["dtype"] == "bfloat16"
        curves.append([loss for _, loss in record["curves"]["train_loss"]])
        [weights] = (tmp_path / name / "runs").glob("*/last.safetensors")
        factors.append(load_file(weights))
    assert curves[1] == pytest.approx(curves[0], rel=BOUND_BFLOAT16)
    assert factors[1].keys() == factors[0].keys()
    assert {tensor.dtype for state in factors for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize("method", ["lora", "dual_lora"])
@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cuda", "bfloat16", marks=pytest.mark.gpu),
        pytest.param("cpu", "float32", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("launcher", ["deepspeed", "fsdp"])
def test_one_process_of_a_launcher_computes_as_without_it(launcher, device, dtype, method, checkpoint, tmp_path):
    """DeepSpeed clips, and drops gradients. On a GPU its engine decides about autocast: LoRA ran in float32 unasked."""
    words = (f"model.path={checkpoint}", f"model.dtype={dtype}", f"method={method}", f"launch.device={device}")
    words += ("recipe.max_grad_norm=0.05", "recipe.learning_rate=1e-2")  # clipped at every step, and it shows
    records = []
    for name in ("local", launcher):
        assert launch([config(tmp_path / name, f"launch={name}", *words)]) == 0
        records.append(only_record(tmp_path / name))
    assert records[0]["identity"] == records[1]["identity"]
    curves = [[value for _, value in record["curves"]["train_loss"]] for record in records]
    if launcher == "fsdp":
        assert curves[1] == curves[0]
    else:
        assert curves[1] == pytest.approx(curves[0], rel=BOUND if dtype == "float32" else 1e-4)
