"""What a sweep says while it goes on: which run, how it ended and why, how long the rest takes, and only what is so."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from dual_lora.commands import main, status
from dual_lora.config.compose import compose
from dual_lora.launch import launch, local, prepare, titles
from dual_lora.report.workspace import Workspace
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve

SMALL = ["model=tiny_roberta", "task=glue/rte", "data.source=sample", "profile=quick", "profile.max_steps=1"]
SMALL += ["profile.test_items=2", "profile.train_examples=8", "launch.device=cpu"]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(titles, "_varied", ())


def test_a_title_has_the_settings_that_the_sweep_varies() -> None:
    configs = compose(["-m", *SMALL, "method=lora", "recipe.learning_rate=1e-3,2e-3", "method.r=2,4", "seed=0,1"])
    titles.distinguish(configs)
    lines = [titles.title(config) for config in configs]
    assert len(set(lines)) == 8
    assert "recipe.learning_rate=0.002" in lines[-1]
    assert "method.r=4" in lines[-1]
    assert lines[-1].endswith("seed=1")


def test_methods_that_differ_by_nature_are_named_by_their_names_alone() -> None:
    configs = compose(["-m", *SMALL, "method=lora,dual_lora,full", "seed=0,1"])
    titles.distinguish(configs)
    assert titles.title(configs[0]) == (
        "model=tiny_roberta task=glue/rte method=lora protocol=paper profile=quick seed=0"
    )


def test_a_serial_sweep_says_how_long_the_rest_takes(tmp_path: Path, caplog, capsys) -> None:
    caplog.set_level(logging.INFO)
    words = ["-m", *SMALL, "method=lora", "recipe.learning_rate=1e-3,2e-3", f"results={tmp_path}"]
    assert launch(compose(words)) == 0
    assert "[1/2] done, about " in caplog.text
    assert "recipe.learning_rate=0.002" in caplog.text
    shown = capsys.readouterr().out
    assert "learning_rate=0.001" in shown
    assert shown.count("record: ") == 2
    assert not list((tmp_path / "runs").glob("*.sweep.json"))  # nothing is left to name


def test_what_is_missing_in_the_data_of_a_sweep_is_said_once(tmp_path: Path, caplog) -> None:
    """As the record has it: a development set that was cut is a score on other items."""
    folder = tmp_path / "data" / "glue" / "RTE"
    folder.mkdir(parents=True)
    head = "index\tsentence1\tsentence2\tlabel\n"
    lines = [
        f"{number}\tIt rains {number}.\tIt is wet.\t{('not_', '')[number % 2]}entailment\n" for number in range(99)
    ]
    for name, rows in (("train", lines), ("dev", lines[:3])):
        (folder / f"{name}.tsv").write_text(head + "".join(rows), encoding="utf-8")
    words = ["-m", *SMALL, "method=lora", "seed=0,1", f"results={tmp_path}", "data.source=local"]
    prepared = prepare(compose([*words, f"data.dir={tmp_path / 'data'}"]))
    assert len(prepared) == 2
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "note on glue/rte: no MNLI start",
        "note on glue/rte: rte train: 99 of 2490 published items",
        "note on glue/rte: rte dev: 3 of 277 published items",
    ]
    assert [text.removeprefix("note on glue/rte: ") for text in said] == list(prepared[0].task.notes)


def test_only_records_that_exist_are_listed(tmp_path: Path, monkeypatch, capsys) -> None:
    real = lifecycle.run

    def stopped(resolved):
        made = real(resolved)
        return {**made, "status": "interrupted", "message": "stopped from the keyboard"}

    monkeypatch.setattr(lifecycle, "run", stopped)
    words = ["-m", *SMALL, "method=lora", "seed=0,1,2", f"results={tmp_path}"]
    assert launch(compose(words)) == 130
    listed = [line.removeprefix("record: ") for line in capsys.readouterr().out.splitlines() if "record: " in line]
    assert [Path(line).is_file() for line in listed] == [True]
    # No experiment file has this sweep, and two of its runs have neither record nor folder.
    assert main(["status", f"--results={tmp_path}"]) == 1
    assert "3 runs: 1 done, 2 missing" in capsys.readouterr().out
    assert status.watch(Workspace(tmp_path), None, tmp_path, ticks=1) == 1
    shown = " ".join(capsys.readouterr().out.split())  # a long folder breaks the line
    assert "1 of 3 done" in shown
    assert "GPU-hours" in shown  # by the run that is done
    monkeypatch.undo()
    assert launch(compose(words)) == 0
    assert main(["status", f"--results={tmp_path}"]) == 0
    assert not list((tmp_path / "runs").glob("*.sweep.json"))


def test_the_ending_of_a_failed_run_has_its_reason_and_its_log(tmp_path: Path) -> None:
    [config] = compose([*SMALL, "method=lora", f"results={tmp_path}"])
    item = resolve(config)
    assert local._ending(item, 0) == "finished"
    assert local._ending(item, 3) == f"exit code 3, before its record (log: {item.folder / 'log.txt'})"
    lifecycle.write_failure(item, "failed", "RuntimeError: the reason", "")
    assert local._ending(item, 1) == f"failed: RuntimeError: the reason (log: {item.folder / 'log.txt'})"
    item.record_path.write_text("{")
    assert local._ending(item, 1).startswith("exit code 1")
    assert dataclasses.is_dataclass(item)
