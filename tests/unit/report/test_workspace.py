"""Committed tables depend on committed records only, and `--check` holds them to it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dual_lora.commands import main
from dual_lora.report import documents
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


def test_records_of_a_sweep_of_ones_own_are_compared(checkout, tmp_path, capsys):
    rows = [record("lora", seed, profile="quick", learning_rate=rate) for rate in (1e-3, 2e-3) for seed in (0, 1)]
    folder = write(tmp_path / "elsewhere" / "records", *rows)
    assert command("tables", checkout, "--records", str(folder)) == 0
    shown = capsys.readouterr().out
    assert "Records in no table" in shown
    assert "learning_rate=0.002 mean ± sd, n=2" in shown


def test_the_base_of_a_demo_comes_first_so_that_the_others_show_their_difference(checkout, tmp_path, capsys):
    rows = [record("dual_lora", profile="demo"), record("none", scores={"boolq": 0.5, "piqa": 0.5}, profile="demo")]
    folder = write(tmp_path / "elsewhere" / "records", *rows)
    assert min(rows, key=lambda row: row["identity"]["run_id"]) is rows[0], "by their names the base is last"
    assert command("tables", checkout, "--records", str(folder)) == 0
    assert "(+10.0)" in capsys.readouterr().out


def test_a_sweep_of_ones_own_is_shown_in_the_order_of_its_methods_and_seeds(checkout, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a narrow screen gets a table in parts, each with the methods
    rows = [record(method, seed, profile="quick") for method in ("lora", "dual_lora", "dora") for seed in range(4)]
    folder = write(tmp_path / "elsewhere" / "records", *rows)
    assert command("tables", checkout, "--records", str(folder)) == 0
    shown = [line.split("│")[1].split() for line in capsys.readouterr().out.splitlines() if "seed" in line]
    expected = [[method, "seed", str(seed)] for method in ("LORA", "DUAL_LORA", "DORA") for seed in range(4)]
    assert [words[:3] for words in shown] == expected
