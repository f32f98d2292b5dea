"""All records as tables for other programs."""

from __future__ import annotations

import csv
import math

import pytest
from pyarrow import parquet

from dual_lora.commands import main
from dual_lora.records.schema import parse
from dual_lora.report import tidy
from tests.unit.page.page_builder import workspace
from tests.unit.report.report_builder import EXPERIMENT, record, write

NUMBERS = {"value", "items", "unreadable", "chance", "seed", "step", "cost.train_seconds", "recipe.learning_rate"}


@pytest.fixture
def exported(tmp_path):
    records = [record("lora", seed, {"boolq": 0.1 + seed / 3, "piqa": None}) for seed in range(3)] + [record("none")]
    records[1]["message"] = "=1+1"
    write(tmp_path / "results" / "records", *records)
    assert main(["export", f"out={tmp_path / 'out'}", f"results={tmp_path / 'results'}"]) == 0
    return tmp_path / "out", records


def test_each_measurement_is_a_row_with_its_full_value(exported):
    folder, records = exported
    rows = parquet.read_table(folder / "measurements.parquet").to_pylist()
    expected = {
        (r["identity"]["run_id"], m["subset"], name): value
        for r in records
        for m in r["scores"]["measurements"]
        for name, value in m["metrics"].items()
    }
    assert {(row["run_id"], row["subset"], row["metric"]): row["value"] for row in rows} == expected
    curves = parquet.read_table(folder / "curves.parquet").to_pylist()
    assert [(row["step"], row["value"]) for row in curves] == [(1, 3.0), (2, 2.5)] * len(records)


@pytest.mark.parametrize("name", ["runs", "measurements", "curves"])
def test_both_formats_hold_the_same(exported, name):
    folder, _ = exported
    rows = parquet.read_table(folder / f"{name}.parquet").to_pylist()
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        texts = list(csv.DictReader(file))
    assert len(rows) == len(texts) > 0
    for row, text in zip(rows, texts, strict=True):
        assert row.keys() == text.keys()
        for key in row.keys() & NUMBERS:
            assert (row[key] is None) == (text[key] == "")
            assert row[key] is None or math.isclose(row[key], float(text[key]), rel_tol=1e-12)


def test_a_spreadsheet_computes_nothing(exported):
    folder, _ = exported
    assert "'=1+1" in (folder / "runs.csv").read_text()
    assert "=1+1" in parquet.read_table(folder / "runs.parquet")["message"].to_pylist()


def test_an_untrained_run_has_no_seed(exported):
    folder, _ = exported
    runs = parquet.read_table(folder / "runs.parquet").to_pylist()
    assert {row["method.name"]: row["seed"] is None for row in runs} == {"lora": False, "none": True}


def test_a_run_names_the_experiments_that_it_is_a_run_of(tmp_path, monkeypatch):
    """Those of the current suite: all that have it in their sweep, trials also at a rate that was added to the grid."""
    text = EXPERIMENT.replace("seed: 0,1,2,3,4,5", "recipe.learning_rate: 1e-4,2e-4\n      seed: 100,101")
    demo = record("lora", 0, profile="demo")
    added, plain, other = record("lora", 100, learning_rate=8e-4), record("lora", 0), record("dora", 0)
    space = workspace(tmp_path, added, plain, other, demo)
    for name, sweep in (("also_x", EXPERIMENT), ("rates", text), ("demo", EXPERIMENT.replace("study", "demo"))):
        (tmp_path / "experiments" / f"{name}.yaml").write_text(sweep)
    monkeypatch.setattr("dual_lora.shipped.home", lambda: tmp_path)
    assert main(["export", f"out={tmp_path / 'out'}", f"results={space.records.parent}"]) == 0
    rows = parquet.read_table(tmp_path / "out" / "runs.parquet").to_pylist()
    named = {row["run_id"]: row["experiments"] for row in rows}
    expected = [(added, "rates"), (plain, "also_x, table_x"), (other, ""), (demo, "")]
    assert named == {one["identity"]["run_id"]: names for one, names in expected}


def test_nothing_is_overwritten(exported, capsys):
    folder, _ = exported
    assert main(["export", f"out={folder}", f"results={folder.parent / 'results'}"]) == 2
    assert "exists" in capsys.readouterr().err


def test_types_that_differ_become_text():
    one, other = record("lora"), record("lora", 1)
    one["identity"]["recipe"]["schedule"], other["identity"]["recipe"]["schedule"] = "linear", 3
    rows = tidy.tables([parse(one), parse(other)], [])["runs"]
    assert tidy._column([row["recipe.schedule"] for row in rows]) == ["linear", "3"]
    assert tidy._column([1, 2.5, None]) == [1.0, 2.5, None]
    assert tidy._column([True, None]) == [True, None]
