"""`kill -9` at any moment, then the same command: the record is that of a run nobody disturbed, bit for bit.

The moment is drawn at random; the seed is printed and `FAULT_SEED=N` repeats it.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.faults.children import At, Child, run, wait_for
from tests.small_cells import CLASSIFYING, WRITING, numbers, only_record

SEED = int(os.environ.get("FAULT_SEED", time.time_ns() % 100_000))
KILLED = -9
EVERY = 2  # steps between checkpoints of the small cells
# What is called when, and how often in an undisturbed run (at least).
WRITER = {
    "in a training step of a writer": ("dual_lora.training.trainer._Trainer.training_step", 6, ["kill", "kill_after"]),
    "in the evaluation": ("dual_lora.evaluation.evaluator._Kept.add", 1, ["kill", "kill_after"]),
    "while predictions are joined": (
        "dual_lora.evaluation.evaluator._Kept._write",
        2,
        ["kill", "kill_after"],
    ),
}
# A run of a third of the time. With dropout and the scores of every epoch: random states and choices continue too.
CLASSIFIER = {
    "in a training step": ("dual_lora.training.trainer._Trainer.training_step", 6, ["kill", "kill_after"]),
    "before the optimizer's state is in the checkpoint": ("torch.save", 9, ["kill"]),
    "while a part of the checkpoint is written": ("torch.save", 9, ["kill_halfway"]),
    "before the checkpoint's manifest": ("dual_lora.training.trainer.seal", 3, ["kill", "kill_after"]),
    "while the manifest's hashes are made": ("dual_lora.training.checkpoints.file_sha256", 12, ["kill"]),
    "while old checkpoints are removed": ("shutil.rmtree", 1, ["kill", "kill_after"]),
    "while the best weights are kept": ("dual_lora.training.callbacks.save_file", 1, ["kill", "kill_halfway"]),
    "while the trained weights are kept": (
        "dual_lora.runs.finished_training.save_file",
        1,
        ["kill", "kill_halfway", "kill_after"],
    ),
    "while the adapter is saved": ("peft.PeftModel.save_pretrained", 4, ["kill", "kill_after"]),
    "while a small file is replaced": ("os.replace", 8, ["kill", "kill_after"]),
    "while the record is written": ("dual_lora.records.build", 1, ["kill", "kill_after"]),
}
MOMENTS = {moment: (WRITING, *value) for moment, value in WRITER.items()}
MOMENTS |= {moment: (CLASSIFYING, *value) for moment, value in CLASSIFIER.items()}


def continue_and_compare(results, undisturbed: dict, kind: list[str]) -> dict:
    child = run(results, kind=kind)
    assert child.code == 0, child.log
    record = only_record(results)
    assert numbers(record) == undisturbed["writing" if kind is WRITING else "classifying"]
    steps = [step for step, _ in record["curves"]["train_loss"]]
    assert steps == sorted(set(steps)), "a step counts twice"
    return record


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_continues_to_the_same_record(moment, undisturbed, tmp_path):
    draw = random.Random(f"{SEED} {moment}")
    kind, target, calls, ways = MOMENTS[moment]
    fault = At(target, draw.randint(1, calls), draw.choice(ways))
    print(f"FAULT_SEED={SEED}: {fault}")
    child = run(tmp_path / "results", kind=kind, fault=fault)
    assert child.code == KILLED, f"{fault} did not happen:\n{child.log}"
    continue_and_compare(tmp_path / "results", undisturbed, kind)


def test_killed_at_a_random_time(undisturbed, tmp_path):
    """Not at a point that somebody thought of: twice, at any time after the first checkpoint began."""
    draw = random.Random(SEED)
    for number in range(2):
        child = Child(tmp_path / "results")
        # A run that ended before its kill has a record and keeps no checkpoint.
        wait_for(
            lambda: [*(tmp_path / "results").rglob("checkpoint-*"), *(tmp_path / "results" / "records").glob("*.json")],
            "a checkpoint or a record",
        )
        delay = draw.uniform(0, 0.7)  # what a run takes
        print(f"FAULT_SEED={SEED}: kill {number} after {delay:.3f} s")
        time.sleep(delay)
        child.kill()
    continue_and_compare(tmp_path / "results", undisturbed, WRITING)


def test_at_most_one_interval_is_repeated(undisturbed, tmp_path):
    fault = At("dual_lora.training.trainer._Trainer.training_step", 6, "kill")  # steps 1 to 5 are done
    assert run(tmp_path / "results", fault=fault).code == KILLED
    record = continue_and_compare(tmp_path / "results", undisturbed, WRITING)
    [resumed] = record["execution"]["resumed_from"]
    assert 5 - resumed < EVERY + 1
    assert resumed == 4


def test_killed_three_times_over(undisturbed, tmp_path):
    """A resumed run is killed as well, and again."""
    for number in (3, 2, 2):
        fault = At("dual_lora.training.trainer._Trainer.training_step", number, "kill")
        assert run(tmp_path / "results", kind=CLASSIFYING, fault=fault).code == KILLED
    continue_and_compare(tmp_path / "results", undisturbed, CLASSIFYING)


def test_finished_training_is_not_trained_again(undisturbed, tmp_path):
    fault = At("dual_lora.evaluation.evaluator._Kept.add", 1, "kill_after")
    assert run(tmp_path / "results", fault=fault).code == KILLED
    child = run(tmp_path / "results", fault=At("dual_lora.training.trainer._Trainer.training_step", 1, "kill"))
    assert child.code == 0, "it trained again"
    record = only_record(tmp_path / "results")
    assert numbers(record) == undisturbed["writing"]
    assert record["cost"]["eval_seconds"] is None, "the killed process's part of the evaluation is missing in it"


def test_second_command_leaves_a_finished_run_alone(tmp_path):
    assert run(tmp_path / "results", kind=CLASSIFYING).code == 0
    [path] = (tmp_path / "results" / "records").glob("*.json")
    before = path.stat().st_mtime_ns
    assert run(tmp_path / "results", kind=CLASSIFYING, fault=At("dual_lora.models.loading.load", 1, "kill")).code == 0
    assert path.stat().st_mtime_ns == before
