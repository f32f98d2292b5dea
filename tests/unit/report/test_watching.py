"""`status --watch` on folders in known states: one look, numbers counted by hand."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dual_lora.commands import main, status
from dual_lora.records import sweeps
from dual_lora.records.schema import Cost, Record
from dual_lora.report import watching
from dual_lora.report.progress import every_run
from dual_lora.report.watching import Chosen
from dual_lora.report.workspace import Workspace

FINISHED = {"train_seconds": 90.0, "eval_seconds": 10.0}


def made(run_id: str, method: str, *, status: str = "finished", parallel: int = 1, **more: Any) -> Record:
    names = {name: {"name": value} for name, value in chosen(method, "").choices.items()}
    identity = {**names, "run_id": run_id, "seed": 0}
    cost = Cost(**more.pop("cost", {}))
    return Record(status=status, identity=identity, cost=cost, execution={"parallel": parallel}, **more)


def chosen(method: str, state: str, run_id: str = "") -> Chosen:
    choices = {"model": "smollm2", "task": "e2e", "method": method, "profile": "study", "seed": "0"}
    return Chosen(f"method={method}", choices, state, run_id)


def begun(results: Path, run_id: str, *, steps: int | None = 100, lines: list[dict] | None = None) -> Path:
    folder = results / "runs" / run_id
    folder.mkdir(parents=True)
    if steps is not None:
        (folder / "planned.json").write_text(json.dumps({"steps": steps}))
    text = "".join(json.dumps(line) + "\n" for line in lines or [])
    (folder / "curves.jsonl").write_text(text)
    return folder


def curve(last: int, seconds: float) -> list[dict]:
    """Ten steps a line."""
    return [
        {"step": step, "first": step - 9, "losses": [1.0] * 10, "seconds": seconds} for step in range(10, last + 1, 10)
    ]


def shown(view: watching.View) -> str:
    written = io.StringIO()
    Console(width=120, file=written).print(view.shown("sweep"))
    return written.getvalue()


def test_a_run_at_work_is_given_the_time_of_its_last_steps_and_of_its_evaluation(tmp_path):
    begun(tmp_path, "b" * 16, lines=[*curve(40, 5.0), {"step": 40, "validation": {"loss": 1.0}}])
    records = [made(run_id="a" * 16, method="lora", cost=FINISHED)]
    runs = [chosen("lora", "done", "a" * 16), chosen("lora", "running", "b" * 16), chosen("lora", "missing")]
    view = watching.look(runs, records, tmp_path)
    [running] = view.running
    assert (running.step, running.steps, running.doing) == (40, 100, "trains")
    assert running.seconds_left == pytest.approx(60 * 0.5 + 10)  # half a second a step, and an evaluation as before
    assert view.gpu_seconds_left == view.seconds_left == pytest.approx(40 + 100)
    assert not view.over
    text = shown(view)
    for part in ("1 of 3 done", "40/100", "0:00:40", "0.04 GPU-hours; 0:02:20"):
        assert part in text


def test_runs_that_share_a_card_take_their_part_of_it(tmp_path):
    for run_id in ("b" * 16, "c" * 16):
        begun(tmp_path, run_id, lines=curve(50, 10.0))
    records = [made(run_id="a" * 16, method="lora", cost=FINISHED, parallel=2)]
    runs = [chosen("lora", "done", "a" * 16), *(chosen("lora", "running", one * 16) for one in "bc")]
    view = watching.look(runs, records, tmp_path)
    assert view.gpu_seconds_left == pytest.approx((60 + 60) / 2)
    assert view.seconds_left == pytest.approx((60 + 60) / 2)


def test_nothing_is_said_of_the_time_before_anything_is_known(tmp_path):
    begun(tmp_path, "b" * 16, steps=None)
    view = watching.look([chosen("lora", "running", "b" * 16), chosen("dora", "missing")], [], tmp_path)
    assert view.running[0].doing == "starts"
    assert view.gpu_seconds_left is None
    assert "not known before one is done" in shown(view)


def test_a_run_that_evaluates_and_a_line_that_is_being_written(tmp_path):
    folder = begun(tmp_path, "b" * 16, lines=curve(100, 5.0))
    with (folder / "curves.jsonl").open("a") as file:
        file.write('{"step": 110, "los')
    (folder / "trained.json").write_text("{}")
    records = [made(run_id="a" * 16, method="dora", cost=FINISHED)]
    view = watching.look([chosen("dora", "running", "b" * 16)], records, tmp_path)
    assert (view.running[0].doing, view.running[0].step, view.running[0].seconds_left) == ("evaluates", 100, 10.0)


def test_what_failed_says_why_and_markup_in_it_is_text(tmp_path):
    failed = made(
        run_id="d" * 16, method="lora", status="diverged", message="the loss of step 5 is nan\nsecond [/bold]"
    )
    view = watching.look([chosen("lora", "diverged", "d" * 16)], [failed], tmp_path)
    assert view.failed == (("method=lora", "diverged: the loss of step 5 is nan"),)
    assert view.over
    assert "failed: method=lora: diverged: the loss of step 5 is nan" in shown(view)


def test_one_look_at_any_results_folder(tmp_path, capsys, monkeypatch):
    results = tmp_path / "results"
    (results / "records").mkdir(parents=True)
    assert status.watch(Workspace(tmp_path), None, results, ticks=1) == 0
    assert "0 of 0 done" in capsys.readouterr().out
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("nothing is left to wait for"))
    assert main(["status", "--watch", f"--results={results}", f"--home={tmp_path}"]) == 0


def test_ctrl_c_leaves_quietly(tmp_path, monkeypatch):
    (tmp_path / "records").mkdir()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "_look", interrupted)
    assert status.watch(Workspace(tmp_path), None, tmp_path) == 1


def test_runs_of_a_sweep_without_an_experiment_are_missing_until_they_begin(tmp_path):
    done = made(run_id="a" * 16, method="lora", cost=FINISHED)
    running = begun(tmp_path, "b" * 16, lines=curve(40, 5.0))
    names = {part: {"name": "x"} for part in ("model", "task", "method", "protocol", "profile")}
    (running / "config.json").write_text(json.dumps({**names, "seed": 1}))
    (running / "lock.json").write_text("{}")
    told = {letter * 16: (f"recipe.learning_rate={letter}", {**names, "seed": 0}) for letter in "abcd"}
    place = sweeps.announce(tmp_path, told)
    (place.parent / "half.sweep.json").write_text('{"e')  # of another sweep, being written
    states = {record.run_id[0]: state for record, state in every_run([done], tmp_path / "runs")}
    assert states == {"a": "done", "b": "running", "c": "missing", "d": "missing"}
    (tmp_path / "records").mkdir()
    view = status._look(Workspace(tmp_path), None, tmp_path)
    assert view.states == {"running": 1, "missing": 3}  # the record is not on the disk
    assert [run.title for run in view.running] == ["recipe.learning_rate=b"]
