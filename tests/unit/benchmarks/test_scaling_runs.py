"""How `bench scaling` waits for its runs and keeps them. tests/end_to_end/test_benchmarks.py makes some."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dual_lora import records, shipped
from dual_lora.benchmarks import scaling_runs
from tests import ROOT

# Makes two steps, and ends well once it may.
STANDS_IN = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[-1].removeprefix("results="))
(folder / "starts").open("a").write("x")
for name in ("runs/one", "records"):
    (folder / name).mkdir(parents=True, exist_ok=True)
for step in (1, 2):
    with (folder / "runs/one/curves.jsonl").open("a") as curve:
        curve.write(json.dumps({"step": step}) + "\\n")
    time.sleep(0 if (folder / "may end").exists() else 0.6)  # longer than it takes to look again
while not (folder / "may end").exists():
    time.sleep(0.01)
(folder / "records/one.json").write_text(json.dumps({"status": (folder / "may end").read_text()}))
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "run.py").write_text(STANDS_IN)
    monkeypatch.setattr(shipped, "command", lambda: [sys.executable, str(tmp_path / "run.py")])
    return scaling_runs


def test_a_run_is_waited_for_until_its_last_step_and_until_its_end(runs, tmp_path):
    made = runs.Run(tmp_path / "made", [])
    made.wait_for_step(2)
    assert made.process.poll() is None, "steps are done, and the run is not over"
    assert [line["step"] for line in made.lines()] == [1, 2]
    (made.folder / "may end").write_text("finished")
    made.wait_for_step(3)  # never comes
    made.wait()
    assert made.process.poll() == 0


@pytest.mark.parametrize(("status", "starts"), [("finished", 1), ("interrupted", 2)])
def test_only_what_is_finished_is_not_started_again(status, starts, runs, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "may end").write_text(status)
    for _ in range(2):
        runs.Run(tmp_path / "made", []).wait()
    assert len((tmp_path / "made" / "starts").read_text()) == starts
    assert json.loads((tmp_path / "made" / "records" / "one.json").read_text())["status"] == status


def record(name: str, **more: Any) -> dict[str, Any]:
    made = records.read(ROOT / "results" / "records" / "018ac3b0ab826078.json")
    assert made is not None
    return made | {"message": name} | more


def test_every_run_is_one_row_of_the_table_also_the_second_time(runs, tmp_path):
    table = tmp_path / "made" / "scaling.jsonl"
    names = [f"2/{number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: runs.keep(table, name, record(name)), names))
    runs.keep(table, "2/7", record("again", status="interrupted"))
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert [row["run"] for row in rows] == sorted(names)
    assert {row["run"]: row["message"] for row in rows} == {name: name for name in names} | {"2/7": "again"}
    assert [row["status"] for row in rows if row["run"] == "2/7"] == ["interrupted"]


def test_the_committed_rows_are_the_runs_of_the_committed_numbers():
    folder = ROOT / "results" / "benchmarks"
    rows = {row["run"]: row for row in map(json.loads, (folder / "scaling.jsonl").read_text().splitlines())}
    compared = 0
    for gpus, parts in json.loads((folder / "scaling.json").read_text()).items():
        for method in ("lora", "dora", "dual_lora"):
            for name in parts.get("speed", {}).get(method, {}).keys() - {"one"}:
                row, shown = rows[f"{gpus}/speed-{method}-{name}"], parts["speed"][method][name]
                assert [size / 2**30 for size in row["cost"]["peak_memory_bytes"]] == shown["peak_GiB"]
                assert row["execution"]["world_size"] == shown["world_size"] == int(gpus)
                compared += 1
        for cell, groups in parts["same"].items():
            for name, shown in groups.items() if isinstance(groups, dict) else ():
                title = f"{gpus}/same-{cell.replace(', ', '-')}"
                last = [rows[f"{title}-{one}"]["curves"]["validation_loss"][-1][1] for one in ("one", name)]
                assert last == shown["last_validation_loss"]
                assert (rows[f"{title}-one"]["run_id"] == rows[f"{title}-{name}"]["run_id"]) == shown["same_identity"]
                compared += 1
        if "killed" in parts:
            assert rows[f"{gpus}/killed-at-once"]["message"] == parts["killed"]["message"]
            if "resumed_from" in parts["killed"]:
                assert rows[f"{gpus}/killed-once"]["execution"]["resumed_from"] == parts["killed"]["resumed_from"]
            compared += 1
        if "large" in parts:
            assert rows[f"{gpus}/large"]["curves"]["train_loss"] == parts["large"]["loss"]
    assert compared > 25
