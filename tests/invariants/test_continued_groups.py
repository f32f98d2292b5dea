"""Runs of several processes that were cut off, and the same command again: the numbers of one that never stopped."""

from __future__ import annotations

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from dual_lora.launch import launch
from tests.same_answer import DEEPSPEED, FOUR, GROUPS, assert_same, run
from tests.small_cells import config, only_record

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
    words = ("profile.validation_examples=21", f"model.path={checkpoint}")
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
    cell = config(results, *GROUPS["ZeRO-3"], "profile.validation_examples=21", f"model.path={checkpoint}")
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
