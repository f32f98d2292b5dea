"""A checkpoint is whole or it is not used; the one before it then is, and the last good one is never removed."""

from __future__ import annotations

import errno
import functools
import json
import pickle
from pathlib import Path

import pytest
import torch

from dual_lora.config import ConfigError
from dual_lora.training import checkpoints
from tests.faults import children
from tests.faults.children import At
from tests.small_cells import CLASSIFYING, numbers, only_record

# A third of a writing model's run. What is damaged has the same form in both.
run = functools.partial(children.run, kind=CLASSIFYING)


def folder_with(tmp_path: Path, *steps: int) -> Path:
    for step in steps:
        checkpoint = tmp_path / f"checkpoint-{step}"
        (checkpoint / "global_step").mkdir(parents=True)
        (checkpoint / "optimizer.pt").write_bytes(bytes(range(256)) * 8)
        (checkpoint / "global_step" / "shard_0.pt").write_bytes(b"shard" * 100)
        checkpoints.seal(checkpoint)
    return tmp_path


def truncate(checkpoint: Path) -> None:
    with (checkpoint / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)


def flip_a_bit(checkpoint: Path) -> None:
    data = bytearray((checkpoint / "optimizer.pt").read_bytes())
    data[777] ^= 0b100
    (checkpoint / "optimizer.pt").write_bytes(data)


def lose_a_shard(checkpoint: Path) -> None:
    (checkpoint / "global_step" / "shard_0.pt").unlink()


def lose_the_manifest(checkpoint: Path) -> None:
    (checkpoint / checkpoints.MANIFEST).unlink()


def damage_the_manifest(checkpoint: Path) -> None:
    path = checkpoint / checkpoints.MANIFEST
    path.write_text(path.read_text()[:40])


def empty_the_manifest(checkpoint: Path) -> None:
    (checkpoint / checkpoints.MANIFEST).write_text("[]")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "1000 bytes instead of 2048"),
        (flip_a_bit, "optimizer.pt does not have the contents"),
        (lose_a_shard, "shard_0.pt is missing"),
        (lose_the_manifest, "cut off"),
        (damage_the_manifest, "manifest is damaged"),
        (empty_the_manifest, "manifest is damaged"),
    ],
)
def test_damaged_checkpoint_is_passed_over(damage, said, tmp_path, caplog):
    folder = folder_with(tmp_path, 2, 4)
    damage(folder / "checkpoint-4")
    assert checkpoints.latest_complete(folder) == folder / "checkpoint-2"
    assert said in caplog.text
    assert not (folder / "checkpoint-4").exists()


def test_all_checkpoints_damaged_means_a_fresh_start(tmp_path):
    folder = folder_with(tmp_path, 2, 4)
    truncate(folder / "checkpoint-2")
    lose_the_manifest(folder / "checkpoint-4")
    assert checkpoints.latest_complete(folder) is None


def test_damaged_checkpoints_are_set_aside_for_inspection(tmp_path):
    folder = folder_with(tmp_path, 2, 4)
    flip_a_bit(folder / "checkpoint-4")
    checkpoints.latest_complete(folder)
    assert [path.name for path in folder.glob("damaged-*")] == ["damaged-checkpoint-4.0"]


def test_pruning_keeps_the_newest(tmp_path):
    folder = folder_with(tmp_path, 2, 4, 10, 8)
    checkpoints.prune(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-10", "checkpoint-8"]


@pytest.mark.parametrize("keep", [0, 1])
def test_pruning_never_removes_the_last(keep, tmp_path):
    folder = folder_with(tmp_path, 2, 4)
    checkpoints.prune(folder, keep)
    assert checkpoints.latest_complete(folder) == folder / "checkpoint-4"


def test_pruning_follows_the_sealing(tmp_path):
    """With one checkpoint kept, a kill before the new one is whole leaves the old one to continue from."""
    fault = At("dual_lora.training.trainer.seal", 2, "kill")
    child = run(tmp_path / "results", "launch.keep_checkpoints=1", fault=fault)
    assert child.code == -9
    [folder] = (tmp_path / "results" / "runs").glob("*/checkpoints")
    assert checkpoints.latest_complete(folder) == folder / "checkpoint-2"


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
def test_run_continues_from_the_checkpoint_before_a_damaged_one(damage, undisturbed, tmp_path):
    results = tmp_path / "results"
    step = "dual_lora.training.trainer._Trainer.training_step"
    assert run(results, fault=At(step, 6, "kill")).code == -9
    [folder] = (results / "runs").glob("*/checkpoints")
    damage(folder / "checkpoint-4")
    child = run(results)
    assert child.code == 0, child.log
    assert only_record(results)["execution"]["resumed_from"] == [2]
    assert numbers(only_record(results)) == undisturbed["classifying"]


def test_damaged_trained_weights_are_trained_again(tmp_path):
    """The weights that evaluation would start from have a hash too."""
    results = tmp_path / "results"
    assert children.run(results, fault=At("dual_lora.evaluation.evaluator._Kept.add", 1, "kill")).code == -9
    [path] = (results / "runs").glob("*/last.safetensors")
    before = path.read_bytes()
    path.write_bytes(before[:-3] + b"\0\0\0")
    child = children.run(results)
    assert child.code == 0, child.log
    assert "last.safetensors is damaged" in child.log
    assert path.read_bytes() == before


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_foreign_object_is_unpickled_from_a_checkpoint(name, tmp_path):
    """Not even from a checkpoint whose manifest agrees, which an attacker would see to."""
    results, trap = tmp_path / "results", tmp_path / "executed"
    assert run(results, fault=At("dual_lora.training.trainer._Trainer.training_step", 4, "kill")).code == -9
    [checkpoint] = (results / "runs").glob("*/checkpoints/checkpoint-2")
    torch.save(Evil(trap), checkpoint / name)
    checkpoints.seal(checkpoint)
    with (checkpoint / name).open("rb"), pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint / name, weights_only=True)
    child = run(results)
    assert not trap.exists()
    assert child.code == 1
    assert only_record(results)["status"] == "failed"


# The call that fails; the first checkpoint takes four `torch.save`.
FULL_DISK = [
    ("torch.save", 6),
    ("dual_lora.training.trainer.seal", 2),
    ("dual_lora.runs.finished_training.save_file", 1),
    ("dual_lora.training.callbacks.save_file", 1),
]


@pytest.mark.parametrize(("target", "number"), FULL_DISK)
def test_full_disk_is_named_and_leaves_earlier_work_intact(target, number, undisturbed, tmp_path):
    results = tmp_path / "results"
    child = run(results, fault=At(target, number, "no_space"))
    assert child.code == 1
    record = only_record(results)
    assert record["status"] == "failed"
    assert "No space left on device" in record["message"]
    [folder] = (results / "runs").glob("*/checkpoints")
    assert checkpoints.latest_complete(folder) is not None or target == "dual_lora.training.callbacks.save_file"
    again = run(results, "retry=true")
    assert again.code == 0, again.log
    assert numbers(only_record(results)) == undisturbed["classifying"]


def test_full_disk_leaves_an_earlier_record_whole(tmp_path, monkeypatch):
    from dual_lora import records

    path = tmp_path / "records" / "a.json"
    records.write_json(path, {"schema": 1, "first": True})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.write_json(path, {"schema": 1, "first": False})
    assert json.loads(path.read_text()) == {"schema": 1, "first": True}
    assert [found.name for found in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("written", "now", "who"),
    [
        (("fsdp", 0, 4), ("deepspeed", 2, 2), "launch=local, torchrun or fsdp, on any number of processes"),
        (("deepspeed", 2, 2), ("deepspeed", 2, 4), "launch=deepspeed launch.zero_stage=2 and 2 process(es)"),
        (("deepspeed", 3, 2), ("single", 0, 1), "launch=deepspeed launch.zero_stage=3 and 2 process(es)"),
        (("fsdp", 0, 4), ("torchrun", 0, 1), None),
        (("deepspeed", 2, 2), ("deepspeed", 2, 2), None),
    ],
)
def test_a_checkpoint_of_another_launcher_is_refused_with_the_one_that_continues_it(written, now, who, tmp_path):
    """Of one written under fsdp it was said that the run has to be launched as it began, which others continue too."""
    written, now = (dict(zip(("engine", "zero_stage", "processes"), one, strict=True)) for one in (written, now))
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    checkpoints.seal(checkpoint, written)
    if who is None:
        checkpoints.check_layout(checkpoint, now)
        return
    with pytest.raises(ConfigError) as refused:
        checkpoints.check_layout(checkpoint, now)
    assert f"continue it with {who}, or move {tmp_path / 'run'} away" in str(refused.value)
