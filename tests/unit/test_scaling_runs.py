"""How scripts/bench_scaling.py waits for its runs; the runs themselves are in tests/end_to_end/test_benchmarks.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.small_cells import ROOT

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
    spec = importlib.util.spec_from_file_location("scaling_runs_script", ROOT / "scripts" / "scaling_runs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "run.py").write_text(STANDS_IN)
    return module


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
