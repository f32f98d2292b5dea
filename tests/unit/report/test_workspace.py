"""Committed tables depend on committed records only, and `--check` holds them to it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dual_lora.commands import main, status
from dual_lora.records import slurm_queue, sweeps
from dual_lora.report import documents
from dual_lora.report.workspace import Workspace
from tests.fresh_interpreters import run_python
from tests.unit.page.page_builder import workspace
from tests.unit.report.report_builder import EXPERIMENT, record, write


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with one experiment, one committed record and a README that shows the table."""
    workspace(tmp_path, record("lora"))
    (tmp_path / "README.md").write_text("# Hello\n\n<!-- table:table_x -->\n<!-- /table -->\n\nBye\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "results/records")
    assert command("tables", tmp_path) == 0
    return tmp_path


def command(name: str, home: Path, *words: str) -> int:
    return main([name, *words, "--home", str(home)])


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def test_written_tables_pass_the_check(checkout):
    assert command("tables", checkout, "--check") == 0
    assert "60.0" in (checkout / "results/tables/table_x.md").read_text()
    readme = (checkout / "README.md").read_text()
    assert "| SMOLLM2 | LORA | here | 60.0 |" in readme
    assert "Prefix" not in readme  # measured rows only
    assert readme.startswith("# Hello")
    assert readme.endswith("Bye\n")


@pytest.mark.parametrize("file", ["results/tables/table_x.md", "results/tables/table_x.tex", "README.md"])
def test_a_number_changed_by_hand_fails_the_check_with_a_diff(checkout, file, capsys):
    path = checkout / file
    path.write_text(path.read_text().replace("60.0", "61.0"))
    assert command("tables", checkout, "--check") == 1
    shown = capsys.readouterr().out
    assert "61.0" in shown
    assert file in shown


def test_a_figure_of_other_points_fails_the_check_and_is_drawn_again(checkout, capsys):
    write(checkout / "results/records", *(record(method, seed) for method in ("lora", "dual_lora") for seed in (1, 2)))
    git(checkout, "add", "results/records")
    assert command("tables", checkout) == 0
    figure = checkout / "results/figures/table_x_curves.svg"
    drawn = figure.read_text()
    figure.write_text(re.sub("points [0-9a-f]{16}", "points 0123456789abcdef", drawn))
    assert command("tables", checkout, "--check") == 1
    assert "results/figures/table_x_curves.svg is not what the committed records give" in capsys.readouterr().out
    assert command("tables", checkout) == 0
    assert figure.read_text() == drawn


def test_a_table_without_an_experiment_fails_the_check(checkout):
    (checkout / "results/tables/table_old.md").write_text("# Old\n")
    assert command("tables", checkout, "--check") == 1


def test_demo_sample_and_other_local_records_never_change_a_committed_table(checkout, capsys):
    before = (checkout / "results/tables/table_x.md").read_text()
    write(
        checkout / "results/records",
        record("dual_lora", scores={"boolq": 0.8, "piqa": 0.8}),
        record("dual_lora", 1, profile="demo", source="sample"),
    )
    assert command("tables", checkout, "--check") == 0
    capsys.readouterr()
    assert command("tables", checkout) == 0
    assert (checkout / "results/tables/table_x.md").read_text() == before
    assert "80.0" in (checkout / "results/local/tables/table_x.md").read_text()
    assert "80.0" in capsys.readouterr().out


def test_a_demo_record_changes_nothing_even_when_committed(checkout):
    write(checkout / "results/records", record("dual_lora", profile="demo", source="sample"))
    git(checkout, "add", "results/records")
    assert command("tables", checkout, "--check") == 0


def test_a_record_counts_once_it_is_added(checkout):
    write(checkout / "results/records", record("dual_lora", scores={"boolq": 0.8, "piqa": 0.8}))
    git(checkout, "add", "results/records")
    assert command("tables", checkout, "--check") == 1
    assert command("tables", checkout) == 0
    assert command("tables", checkout, "--check") == 0


def test_a_table_says_of_how_many_runs_the_answers_are_not_kept(checkout):
    table, kept = checkout / "results/tables/table_x.md", checkout / "results/predictions"
    said = "of 1 of 1 runs the answers to the test items are not kept: they cannot be scored again"
    assert said in table.read_text()
    kept.mkdir()
    (run,) = (checkout / "results/records").glob("*.json")
    (kept / f"{run.stem}.jsonl.gz").write_bytes(b"")
    assert command("tables", checkout, "--check") == 0  # others do not have what is not added
    git(checkout, "add", "results/predictions")
    assert command("tables", checkout) == 0
    assert said not in table.read_text()


def test_a_damaged_committed_record_is_an_error_that_names_it(checkout, capsys):
    path = next((checkout / "results/records").glob("*.json"))
    write(checkout / "results/records", record("dual_lora", scores={"boolq": 0.8, "piqa": 0.8}))
    git(checkout, "add", "results/records")
    path.write_text(path.read_text()[:100])
    assert command("tables", checkout, "--check") == 2
    assert f"refused: {path} is damaged" in capsys.readouterr().err
    assert command("tables", checkout) == 2, "the rest is shown all the same"
    assert "80.0" in (checkout / "results/tables/table_x.md").read_text()


def test_each_record_is_read_once_however_many_tables_show_it(checkout, monkeypatch):
    read = Counter()
    path_read_bytes = Path.read_bytes

    def counted(path):
        read[path.parent.name] += 1
        return path_read_bytes(path)

    for number in range(5):
        (checkout / f"experiments/table_{number}.yaml").write_text(EXPERIMENT)
    monkeypatch.setattr(Path, "read_bytes", counted)
    assert command("tables", checkout) == 0
    assert read["records"] == 1


def test_a_refused_record_of_this_machine_leaves_the_check_alone(checkout, capsys):
    (checkout / "results/records/broken.json").write_text("{")
    assert command("tables", checkout, "--check") == 0
    assert command("tables", checkout) == 2
    assert command("status", checkout, "table_x") == 1
    assert capsys.readouterr().err.count("broken.json is damaged") == 2


def test_unknown_names_are_errors_that_list_the_legal_ones(checkout, capsys):
    assert command("tables", checkout, "--only", "table_y") == 2
    assert "table_x" in capsys.readouterr().err
    (checkout / "README.md").write_text("<!-- table:nope -->\n<!-- /table -->\n")
    assert command("tables", checkout, "--check") == 2
    assert "README.md" in capsys.readouterr().err


def test_a_document_shows_the_columns_it_asks_for_and_the_check_sees_a_changed_number(checkout, capsys):
    readme = checkout / "README.md"
    readme.write_text("Hello\n\n<!-- table:table_x columns=PIQA,n -->\n<!-- /table -->\n\nBye\n")
    assert command("tables", checkout) == 0
    text = readme.read_text()
    assert "| method | PIQA | n |" in text
    assert "| 70.0 | 1 |" in text
    assert "BoolQ" not in text
    assert text.endswith("Bye\n")
    assert command("tables", checkout, "--check") == 0
    readme.write_text(text.replace("70.0", "71.0"))
    assert command("tables", checkout, "--check") == 1
    readme.write_text(text.replace("PIQA,n", "PIQ,n"))
    assert command("tables", checkout, "--check") == 2
    assert "PIQ, n. Legal: " in capsys.readouterr().err


def test_records_of_another_folder_make_local_tables(checkout, tmp_path):
    folder = write(tmp_path / "elsewhere", record("lora", scores={"boolq": 0.33, "piqa": 0.3}))
    assert command("tables", checkout, "--records", str(folder)) == 0
    assert "33.0" in (checkout / "results/local/tables/table_x.md").read_text()
    assert command("tables", checkout, "--check") == 0


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "utf-8"])
def test_a_terminal_of_any_encoding_shows_what_it_can(checkout, tmp_path, monkeypatch, encoding):
    labelled = [record("lora", seed, scores={"boolq": 0.3 + seed / 100, "piqa": 0.3}) for seed in (0, 1)]
    for values in labelled:
        values["identity"]["model"]["label"] = "结果 é"
    folder = write(tmp_path / "elsewhere", *labelled)
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding=encoding))
    assert command("tables", checkout, "--records", str(folder)) == 0
    sys.stdout.flush()
    shown = stream.getvalue().decode(encoding)
    wanted = {"ascii": ("?? ?", "30.5 ? 0.7"), "iso8859-1": ("?? é", "30.5 ± 0.7"), "utf-8": ("结果 é", "30.5 ± 0.7")}
    assert all(text in shown for text in wanted[encoding])


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


def test_the_shipped_tables_are_what_the_committed_records_give_and_need_no_torch():
    """In an interpreter of its own, whose imports are those of the command."""
    check = "import sys; from dual_lora.commands import main; code = main(['tables', '--check'])"
    loaded = run_python(f"{check}; print(*sys.modules); sys.exit(code)").split()
    assert "dual_lora.report.workspace" in loaded
    assert not {"torch", "peft", "transformers"} & set(loaded)


PARTS = "a\n<!-- table:x -->\nold\n<!-- /table -->\n<!-- benchmarks:targets -->\nold\n<!-- /benchmarks -->\nb\n"


def test_each_generator_fills_the_parts_of_its_own_kind():
    filled = documents.fill(PARTS, "benchmarks", lambda name, columns: f"{name}, {columns}\n", "README.md")
    assert filled == PARTS.replace(
        "<!-- benchmarks:targets -->\nold\n", "<!-- benchmarks:targets -->\n\ntargets, None\n\n"
    )
    assert documents.fill(filled, "benchmarks", lambda name, columns: "targets, None", "README.md") == filled


@pytest.mark.parametrize(("old", "new"), [(":targets -->", ":targets column=a -->"), ("<!-- /benchmarks -->\n", "")])
def test_a_part_that_cannot_be_filled_is_named(old, new):
    with pytest.raises(documents.DocumentError, match=r"README.md: a part opened by <!-- benchmarks:NAME --> is not"):
        documents.fill(PARTS.replace(old, new), "benchmarks", lambda name, columns: "", "README.md")


def test_status_of_a_folder_lists_every_run_of_whatever_sweep(checkout, tmp_path, capsys):
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


def test_records_of_a_sweep_of_ones_own_are_compared(checkout, tmp_path, capsys):
    rows = [record("lora", seed, profile="quick", learning_rate=rate) for rate in (1e-3, 2e-3) for seed in (0, 1)]
    folder = write(tmp_path / "elsewhere" / "records", *rows)
    assert command("tables", checkout, "--records", str(folder)) == 0
    shown = capsys.readouterr().out
    assert "Records in no table" in shown
    assert "learning_rate=0.002 mean ± sd, n=2" in shown
