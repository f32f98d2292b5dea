"""`run.py status`: what runs of an experiment or of a folder are, and the commands for the rest."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from dual_lora.commands import main, status
from dual_lora.records import slurm_queue, sweeps
from dual_lora.report.workspace import Workspace
from tests.unit.page.page_builder import workspace
from tests.unit.report.report_builder import record, write


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with one experiment and one record."""
    return workspace(tmp_path, record("lora")).root


def command(name: str, home: Path, *words: str) -> int:
    return main([name, *words, "--home", str(home)])


def test_sweep_status_tells_done_running_failed_and_missing_apart(checkout, capsys):
    write(checkout / "results/records", record("none"), record("dual_lora", status="out_of_memory"))
    for seed, running in ((1, True), (2, False)):
        run = checkout / "results/runs" / f"run{seed}"
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps(record("dual_lora", seed)["identity"]))
        if running:
            (run / "lock.json").write_text(json.dumps({"since": time.time()}))
    assert command("status", checkout, "table_x", "--runs") == 1
    shown = capsys.readouterr().out
    assert "18 runs: 7 done, 8 missing, 1 out_of_memory, 1 running, 1 stopped" in shown
    assert "python run.py -m experiment=table_x method=lora seed=1,2,3,4,5" in shown
    assert "python run.py -m experiment=table_x method=dual_lora seed=0 retry=true" in shown
    assert command("status", checkout, "table_z") == 2


def test_status_of_a_folder_lists_every_run_of_whatever_sweep(checkout, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a narrow screen gets a table in parts, each with the methods
    results = tmp_path / "my results"
    write(results / "records", record("lora", 3, profile="quick"), record("dora", status="failed"))
    for seed in (7, 8):
        run = results / "runs" / f"begun{seed}"
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps(record("dual_lora", seed)["identity"]))
    assert command("status", checkout, "--results", str(results)) == 1
    shown = capsys.readouterr().out
    assert "4 runs: 1 done, 1 failed, 2 stopped" in shown or "4 runs: 1 failed, 1 done, 2 stopped" in shown
    assert "begun7" in shown
    assert [line.split("│")[3].strip() for line in shown.splitlines() if line.startswith("│")] == [
        "dora", "dual_lora", "dual_lora", "lora",
    ], "sorted by what they are, not by their ids"  # fmt: skip
    assert command("status", checkout, "table_x", "--results", str(results), "--missing") == 1
    assert f"'results={results}'" in capsys.readouterr().out
    assert command("status", checkout) == 0
    assert "1 runs: 1 done" in capsys.readouterr().out
    assert command("status", checkout, "--results", str(tmp_path / "none")) == 2


def test_a_script_that_asks_what_is_missing_gets_commands_alone(tmp_path, capsys):
    rows = [record(method, seed) for method in ("none", "lora", "dual_lora") for seed in range(6)]
    space = workspace(tmp_path, *rows)
    assert command("status", tmp_path, "table_x", "--missing") == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "nothing is missing: 18 of 18 runs are done\n")
    (space.records / f"{rows[-1]['identity']['run_id']}.json").unlink()
    assert command("status", tmp_path, "table_x", "--missing") == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (
        f"python run.py -m experiment=table_x method=dual_lora seed=5 results={tmp_path}/results\n",
        "",
    )
    begun = space.root / "results" / "runs" / "begun"
    begun.mkdir(parents=True)
    (begun / "config.json").write_text(json.dumps(rows[-1]["identity"]))
    (begun / "lock.json").write_text("{}")
    assert command("status", tmp_path, "table_x", "--missing") == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "nothing is missing: 17 of 18 runs are done, 1 running\n")
    assert command("status", tmp_path, "--missing") == 2
    shown = capsys.readouterr()
    assert (shown.out, "name it, one of experiments/" in shown.err) == ("", True)


def test_a_run_in_slurms_queue_is_not_said_to_be_missing(tmp_path, monkeypatch, capsys):
    """What waited was, with the command that runs it."""
    rows = [record(method, seed) for method in ("none", "lora") for seed in range(6)]
    rows += [record("dual_lora", seed, status="timed_out" if seed == 5 else "finished") for seed in range(6)]
    write(tmp_path / "all", *rows)  # names them
    *done, waits, stopped, continues = rows
    space = workspace(tmp_path, *done, continues)
    told = {row["identity"]["run_id"]: ("", row["identity"]) for row in (waits, stopped, continues)}
    sweeps.announce(tmp_path / "results", told)
    for row, job in ((waits, "7_0"), (stopped, "7_1"), (continues, "8"), (done[0], "9")):
        folder = space.root / "results" / "runs" / row["identity"]["run_id"]
        folder.mkdir(parents=True)
        slurm_queue.keep(folder, job)
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked; echo 7_0; echo 8; echo 9; echo 100\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert command("status", tmp_path, "table_x") == 1
    shown = capsys.readouterr().out
    assert "18 runs: 15 done, 2 queued, 1 missing" in shown
    rest = shown.partition("The rest:")[2]
    assert (rest.count("run.py"), "seed=4" in rest) == (1, True)
    [asked] = (tmp_path / "asked").read_text().splitlines()
    assert set(asked.rpartition(" ")[2].split(",")) == {"7_0", "7_1", "8"}, "of those that are done nothing is asked"
    assert command("status", tmp_path) == 1
    assert "2 queued" in capsys.readouterr().out
    view = status._look(Workspace(tmp_path), "table_x", tmp_path / "results")
    assert (view.states["queued"], view.over) == (2, False)
