"""The machine never changes the experiment: processes, accumulation and ZeRO stages give the same curves and scores.

Bound: losses within 2e-5 relative of one process, over all steps; sums in another order differ by less (float32, tiny
LLaMA, no dropout; a few 1e-7 were measured). Scores and written replies are equal outright at these sizes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dual_lora import models
from dual_lora.launch import launch
from dual_lora.records.per_item import unpacked
from dual_lora.tasks.base import Head
from tests.forked_groups import fork_groups
from tests.small_cells import CLASSIFYING, config, only_record

BOUND = 2e-5
BOUND_BFLOAT16 = 5e-3  # 8 bits, and sums in another order
TWO = ("launch.num_gpus=2", "launch.per_device_batch=4")
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
    words = ("profile.validation_examples=24", f"model.path={checkpoint}")  # several batches, of unequal lengths
    assert launch([config(results, *launcher, *words)]) == 0
    return only_record(results)


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory) -> tuple[dict, Path]:
    """One process, no accumulation."""
    results = tmp_path_factory.mktemp("alone")
    return run(results, checkpoint), results


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


FOUR = ("launch.num_gpus=4", "launch.per_device_batch=2")
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


# Read by Python as it starts: a run that finishes keeps the checkpoints that one which is cut off leaves.
KEEP_CHECKPOINTS = """
import sys, threading, time
def act():
    while "dual_lora.runs.leftovers" not in sys.modules: time.sleep(0.05)
    sys.modules["dual_lora.runs.leftovers"].free = lambda *_: 0
threading.Thread(target=act, daemon=True).start()
"""


@pytest.fixture
def as_if_cut_off(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(KEEP_CHECKPOINTS)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr("dual_lora.runs.leftovers.free", lambda *_: 0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.usefixtures("as_if_cut_off")
def test_sharded_run_continues_from_its_checkpoint(stage, alone, checkpoint, tmp_path):
    """Stopped after four of six steps and continued; DeepSpeed's own files load without unpickling objects."""
    launcher = (*DEEPSPEED, f"launch.zero_stage={stage}")
    run(tmp_path, checkpoint, *launcher)
    [record] = (tmp_path / "records").glob("*.json")
    [folder] = (tmp_path / "runs").iterdir()
    for path in (record, folder / "trained.json", *folder.glob("checkpoints/checkpoint-6/manifest.json")):
        path.unlink()
    assert json.loads((folder / "checkpoints/checkpoint-4/manifest.json").read_text())["files"]
    words = ("profile.validation_examples=24", f"model.path={checkpoint}")
    assert launch([config(tmp_path, *words)]) == 1, "one process has no use for two shards"
    assert not list((tmp_path / "records").glob("*.json"))
    continued = run(tmp_path, checkpoint, *launcher)
    assert continued["execution"]["resumed_from"] == [4]
    assert_same(continued, tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"), [("FSDP", ()), ("FSDP", ("launch=fsdp", *FOUR)), ("alone", GROUPS["FSDP"])], ids=str
)
@pytest.mark.usefixtures("as_if_cut_off")
def test_full_fine_tuning_continues_on_another_number_of_processes(before, after, checkpoint, tmp_path):
    """Its weights and the optimizer's state are split; checkpoints are those of one process."""
    words = ("method=full", "task.scorings=[generate]")
    straight = run(tmp_path / "straight", checkpoint, *words)
    run(tmp_path, checkpoint, *words, *GROUPS.get(before, ()))
    [record] = (tmp_path / "records").glob("*.json")
    [folder] = (tmp_path / "runs").iterdir()
    for path in (record, folder / "trained.json", *folder.glob("checkpoints/checkpoint-6/manifest.json")):
        path.unlink()
    continued = run(tmp_path, checkpoint, *words, *after)
    assert continued["execution"]["resumed_from"] == [4]
    assert_same(continued, tmp_path, (straight, tmp_path / "straight"))


# Read by Python as it starts, before anything of ours: the fault is in the test, not in the program.
KILL_BEFORE_EVALUATION = """
import os
if os.environ.get("RANK") == "1" and not os.path.exists({over!r}):
    import sys, threading, time
    def act():
        while "dual_lora.training.trainer" not in sys.modules: time.sleep(0.05)
        from dual_lora.distributed import deepspeed
        deepspeed.ready_to_evaluate = lambda *_: os.kill(os.getpid(), 9)
    threading.Thread(target=act, daemon=True).start()
"""


@pytest.mark.slow
def test_partitioned_run_killed_between_training_and_evaluation_continues(alone, checkpoint, tmp_path, monkeypatch):
    """The trained weights are loaded into shards that no training in this process has prepared."""
    over = tmp_path / "over"
    (tmp_path / "sitecustomize.py").write_text(KILL_BEFORE_EVALUATION.format(over=str(over)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    results = tmp_path / "results"
    cell = config(results, *GROUPS["ZeRO-3"], "profile.validation_examples=24", f"model.path={checkpoint}")
    assert launch([cell]) == 130
    assert only_record(results)["status"] == "interrupted"
    [trained] = (results / "runs").glob("*/trained.json")
    finished = trained.stat().st_mtime_ns
    over.touch()
    record = run(results, checkpoint, *GROUPS["ZeRO-3"])
    assert trained.stat().st_mtime_ns == finished, "it was trained again"
    assert record["status"] == "finished"
    assert record["execution"]["zero_stage"] == 3
    assert_same(record, results, alone)
