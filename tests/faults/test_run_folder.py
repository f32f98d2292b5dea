"""Small files of a run's folder that are empty, cut or of another type: made anew, or named with what to do.

The files are damaged as a failing disk or a hand does it; the command is given again, and its record has to be that of
a run whose files nobody touched.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dual_lora import records
from dual_lora.config import ConfigError
from dual_lora.diagnostics import read_report
from dual_lora.evaluation.epoch_scores import EpochScores
from dual_lora.evaluation.evaluator import _Kept, predictions_sha256
from dual_lora.launch import group, prepare
from dual_lora.models import dequantize
from dual_lora.records import slurm_queue
from dual_lora.runs import finished_training, lifecycle, work
from dual_lora.training import checkpoints
from dual_lora.training.callbacks import Curves
from tests.small_cells import config, numbers, only_record

STEP = "dual_lora.training.trainer._Trainer.training_step"
DAMAGES = {
    "empty": b"",
    "zeros": b"\0" * 64,
    "no JSON": b"\xff\xfe\x00",
    "cut": None,
    "null": b"null",
    "a number": b"3",
    "a list": b"[1, 2]",
    "an object of something else": b'{"index": "a", "sha256": 3, "step": [], "files": [], "job": {}}',
    "deep": b"[" * 100_000,
}


def damage(path: Path, how: str) -> None:
    content = DAMAGES[how]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)


def run(results: Path) -> dict:
    [prepared] = prepare([dataclasses.replace(config(results), retry=True)])
    return lifecycle.run(prepared)


def stopped(results: Path, monkeypatch: pytest.MonkeyPatch, target: str, call: int) -> Path:
    """Run until a function is called for the n-th time, which fails; return the run's folder."""
    owner, _, name = target.rpartition(".")
    module, _, kind = owner.rpartition(".")
    cls = getattr(__import__(module, fromlist=[kind]), kind)
    original, calls = getattr(cls, name), []

    def failing(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("stopped by the test")
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(cls, name, failing)
        assert run(results)["message"] == "RuntimeError: stopped by the test"
    [folder] = (results / "runs").iterdir()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    results = tmp_path_factory.mktemp("whole")
    assert run(results)["status"] == "finished"
    return results


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has trained and was stopped in its evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        results = tmp_path_factory.mktemp("trained")
        stopped(results, patch, "dual_lora.evaluation.evaluator._Kept.__exit__", 1)
    return results


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A run that was stopped in step 5, after the checkpoint of step 4."""
    with pytest.MonkeyPatch.context() as patch:
        results = tmp_path_factory.mktemp("halfway")
        stopped(results, patch, STEP, 5)
    return results


def copy(results: Path, place: Path) -> tuple[Path, Path]:
    shutil.copytree(results, place / "results")
    [folder] = (place / "results" / "runs").iterdir()
    return place / "results", folder


@pytest.mark.parametrize("how", ["cut", "an object of something else"])
def test_damaged_files_of_a_trained_run_are_made_anew(how, trained, whole, tmp_path):
    results, folder = copy(trained, tmp_path)
    kept = folder / "predictions" / "last.test.generate.jsonl"
    assert kept.stat().st_size
    for path in (folder / "rendered.json", folder / "trained.json", kept, folder / "config.json"):
        damage(path, how)
    assert numbers(run(results)) == numbers(only_record(whole))
    for name in ("rendered.json", "trained.json"):
        assert (folder / f"damaged-{name}.0").exists()
    assert json.loads((folder / "trained.json").read_text())["steps"] == 6


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["rendered.json", "trained.json"])
def test_a_damaged_file_is_set_aside(how, name, trained, tmp_path):
    _, folder = copy(trained, tmp_path)
    damage(folder / name, how)
    parse = {"rendered.json": work._sha256, "trained.json": finished_training._trained}[name]
    assert records.read_json(folder / name, parse) is None
    assert not (folder / name).exists()
    assert (folder / f"damaged-{name}.0").exists()


@pytest.mark.parametrize("how", ["empty", "cut"])
def test_damaged_curves_are_those_of_the_checkpoint(how, halfway, whole, tmp_path):
    """Losses of steps that are done are nowhere else."""
    results, folder = copy(halfway, tmp_path)
    damage(folder / "curves.jsonl", how)
    made = run(results)
    assert made["execution"]["resumed_from"] == [4]
    assert numbers(made) == numbers(only_record(whole))


@pytest.mark.parametrize("when", ["before the file takes its name", "while it is written"])
def test_losses_survive_a_full_disk_while_curves_are_rewritten(when, halfway, whole, tmp_path, monkeypatch):
    results, folder = copy(halfway, tmp_path)
    before = (folder / "curves.jsonl").read_bytes()

    def full(*arguments, **_):
        if any("curves.jsonl" in str(argument) for argument in arguments) or when == "while it is written":
            raise OSError(28, "No space left on device")
        return replace(*arguments)

    replace = records.storage.os.replace
    with monkeypatch.context() as patch:
        patch.setattr("os.replace" if when.startswith("before") else "os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            Curves(folder / "curves.jsonl").forget_after(folder / "checkpoints" / "checkpoint-4")
    assert (folder / "curves.jsonl").read_bytes() == before
    assert numbers(run(results)) == numbers(only_record(whole))


def test_a_checkpoint_of_an_older_version_has_its_losses_in_the_run_folder(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    lines = [{"step": 2, "first": 1, "losses": [1.0, 0.9]}, {"step": 4, "first": 3, "losses": [0.8, 0.7]}]
    (tmp_path / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    curves = Curves(tmp_path / "curves.jsonl")
    curves.forget_after(checkpoint)
    assert curves.summary(10)["train_loss"] == [[1, 1.0], [2, 0.9], [3, 0.8], [4, 0.7]]
    (tmp_path / "curves.jsonl").write_text(json.dumps(lines[1]) + "\n")
    with pytest.raises(ConfigError, match=r"curves\.jsonl lacks losses of steps before 4.*move .*checkpoints away"):
        curves.forget_after(checkpoint)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_choice_of_the_best_checkpoint_is_named(how, halfway, tmp_path):
    """Which step was best so far cannot be found out again."""
    results, folder = copy(halfway, tmp_path)
    (folder / "selected").mkdir(exist_ok=True)
    (folder / "selected" / "best_loss.json").write_text('{"step": 2, "loss": 1.0}')
    damage(folder / "selected" / "best_loss.json", how)
    with pytest.raises(ConfigError, match=r"best_loss\.json is damaged.*; move .*checkpoints away to train anew"):
        run(results)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_damaged_scores_of_an_epoch_are_named(how, suffix, tmp_path):
    logits = np.zeros((4, 2), np.float32)
    for step in (2, 4):
        np.savez(tmp_path / f"{step}.npz", dev=logits)
        (tmp_path / f"{step}.json").write_text('{"dev": 0.5}')
    (tmp_path / "notes.json").write_text("not a step's")
    epochs = EpochScores(tmp_path, SimpleNamespace(), {"dev": SimpleNamespace()}, SimpleNamespace())
    epochs.forget_after(2)
    assert epochs.curves() == {"dev_score": [[2, 0.5]]}
    damage(tmp_path / f"2.{suffix}", how)
    with pytest.raises(ConfigError, match=rf"2\.{suffix} is damaged.*move .* away to train anew"):
        epochs.forget_after(2)
    epochs.forget_after(0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_manifest_is_a_damaged_checkpoint(how, halfway, tmp_path):
    _, folder = copy(halfway, tmp_path)
    damage(folder / "checkpoints" / "checkpoint-4" / "manifest.json", how)
    assert checkpoints.fault(folder / "checkpoints" / "checkpoint-4") == "its manifest is damaged"
    assert checkpoints.latest_complete(folder / "checkpoints").name == "checkpoint-2"


def test_a_manifest_whose_layout_is_damaged_is_a_damaged_checkpoint(halfway, tmp_path):
    _, folder = copy(halfway, tmp_path)
    path = folder / "checkpoints" / "checkpoint-4" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": {"engine": "single"}}))
    assert checkpoints.fault(path.parent) == "its manifest is damaged"


@pytest.mark.parametrize("how", DAMAGES)
def test_predictions_that_cannot_be_read_are_made_again(how, tmp_path):
    replies = ["first", "zweite Ü\u2028", "third"]
    path = tmp_path / "last.test.generate.jsonl"
    made = _Kept.read(path, 3)
    with made:
        made.add(made.share(0, 1), replies)
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:-6] if DAMAGES[how] is None else DAMAGES[how]  # cut within the letter
    path.write_bytes(b"\n".join(lines))
    found = _Kept.read(path, 3)
    assert found.values == {0: "first", 2: "third"}
    assert found.share(0, 1) == [1]


def test_predictions_of_another_kind_are_made_again(tmp_path):
    """A reply where log-likelihoods are due, numbers where a reply is due, an item that does not exist."""
    path = tmp_path / "last.test.likelihood.jsonl"
    values = [[-1.0, float("nan")], "a reply", [], ["x"], None, {"a": 1}, [-2.0, -3.0], True]
    path.write_text("".join(json.dumps({"index": i, "value": value}) + "\n" for i, value in enumerate(values)))
    with path.open("a") as file:
        file.write('{"index": true, "value": [1.0]}\n{"index": -1, "value": [1.0]}\n{"index": 99, "value": [1.0]}\n')
    shutil.copy(path, tmp_path / "copy.jsonl")
    assert _Kept.read(path, 8, list).values.keys() == {0, 6}
    assert _Kept.read(tmp_path / "copy.jsonl", 8, str).values == {1: "a reply"}


def test_a_stray_file_does_not_stop_the_hashes_of_predictions(tmp_path):
    (tmp_path / "last.test.generate.jsonl").write_text('{"index": 0, "value": "a"}\n')
    (tmp_path / "notes.jsonl").write_bytes(b"\xff not ours\n[1]\n3")
    assert predictions_sha256(tmp_path).keys() == {"last.test.generate"}


@pytest.mark.parametrize("how", DAMAGES)
def test_other_small_files_do_not_stop_a_run(how, tmp_path):
    """Diagnostics, the number of a submitted job, what a process of a group left, the manifest of a cache."""
    start = tmp_path / "start.json"
    folder = start.with_suffix(".failures")
    folder.mkdir()
    whole = {"rank": 1, "time": 1.0, "status": "failed", "message": "the cause", "trace": ""}
    for name in (tmp_path / "diagnostics.json", tmp_path / "slurm.json", folder / "rank-0.json"):
        name.write_text(json.dumps({"layers": {}, "steps": [1], "job": "7", **whole}))
        damage(name, how)
    (folder / "rank-1.json").write_text(json.dumps(whole))
    assert read_report(tmp_path / "diagnostics.json") is None
    assert slurm_queue.queued([tmp_path]) == {}
    assert group.Group(start, None).first_failure() == whole
    (tmp_path / dequantize._MANIFEST).write_text('{"sha256": {}}')
    damage(tmp_path / dequantize._MANIFEST, how)
    assert "missing or unreadable" in str(dequantize.damage(tmp_path))
