"""Records in files of many: nothing in them changes, every command reads them, a run's own file holds before a line."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dual_lora import records
from dual_lora.commands import main
from dual_lora.records.schema import RecordError
from dual_lora.report.records import read_all
from tests import ROOT, committed
from tests.unit.page.page_builder import workspace
from tests.unit.report.report_builder import record, write


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A repository with an experiment whose six records are in one file, all committed."""
    workspace(tmp_path, *(record(name, seed) for name in METHODS for seed in range(3)), name="sweep")
    folder = tmp_path / "results" / "records"
    before, _ = records.read_folder(folder)
    assert main(["tables", "--home", str(tmp_path)]) == 0
    assert main(["pack", "sweep", "--home", str(tmp_path)]) == 0
    assert [path.name for path in folder.iterdir()] == ["sweep.jsonl"]
    assert records.read_folder(folder) == (before, [])
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


METHODS = ("lora", "dual_lora")


def held(home: Path) -> tuple[Path, list[dict[str, Any]]]:
    folder = home / "results" / "records"
    return folder, records.read_folder(folder)[0]


def test_committed_records_are_the_same_in_one_file(tmp_path: Path) -> None:
    own = sorted(committed.FOLDER.glob("*.json"))[:20]
    for path in own:
        shutil.copy(path, tmp_path)
    before = {path.stem: json.loads(path.read_text()) for path in own}
    assert records.pack(tmp_path / "many.jsonl", [path.stem for path in own[:15]]) == 15
    assert records.pack(tmp_path / "many.jsonl", [path.stem for path in own[10:]]) == 5
    lines = (tmp_path / "many.jsonl").read_text().rstrip("\n").split("\n")
    assert {json.loads(line)["identity"]["run_id"]: json.loads(line) for line in lines} == before
    for name in before:
        path = tmp_path / f"{name}.json"
        assert records.read(path) == records.read(committed.FOLDER / path.name)
        assert records.file_of(path) == tmp_path / "many.jsonl"
    assert records.read(tmp_path / "0123456789abcdef.json") is None


def test_tables_are_what_they_were(home: Path) -> None:
    assert main(["tables", "--check", "--home", str(home)]) == 0
    assert "| 3 |" in (home / "results" / "tables" / "sweep.md").read_text()


def test_every_command_reads_them(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, made = held(home)
    one, other = made[0]["identity"]["run_id"], made[1]["identity"]["run_id"]
    assert main(["compare", one, other, f"results={home / 'results'}"]) == 0
    assert main(["status", "sweep", "--home", str(home)]) == 1
    assert "18 runs: 12 missing, 6 done" in capsys.readouterr().out
    assert main(["export", f"results={home / 'results'}", f"out={tmp_path / 'csv'}"]) == 0
    assert one in (tmp_path / "csv" / "runs.csv").read_text()
    assert main(["tables", "--records", str(home / "results" / "records"), "--home", str(home)]) == 0


def test_a_run_scored_again_has_its_own_file_which_counts_once_it_is_added(home: Path) -> None:
    folder, made = held(home)
    again = record("dual_lora", scores={"boolq": 0.9, "piqa": 0.9})
    write(folder, again)
    name = again["identity"]["run_id"]
    assert name in {known["identity"]["run_id"] for known in made}
    found, refused = read_all(folder)
    assert len(found) == len(made)
    assert not refused
    shown = {entry.run_id: entry for entry in found}[name].scores.headline
    assert shown is not None
    assert shown.value == 0.9
    assert main(["tables", "--check", "--home", str(home)]) == 0, "what is committed is the line"
    subprocess.run(["git", "add", "."], cwd=home, check=True)
    assert main(["tables", "--check", "--home", str(home)]) == 1
    assert main(["pack", "sweep", "--home", str(home)]) == 0
    assert [path.name for path in folder.iterdir()] == ["sweep.jsonl"]
    kept = records.read(folder / f"{name}.json")
    assert kept is not None
    assert kept["scores"]["headline"]["value"] == 0.9
    assert len(held(home)[1]) == len(made)


DAMAGES = {
    "cut": (lambda line: line[:100], "line 2 is damaged"),
    "edited": (lambda line: line.replace('"value": 0.6', '"value": 0.7').replace('"accuracy": 0.6', '"accuracy": 0.7'),
               "line 2: changed after the run wrote it"),
    "another seed": (lambda line: line.replace('"seed": ', '"seed": 1'), "line 2: it says it is of run"),
    "no record": (lambda line: "5", r"line 2 is damaged \(not a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_refused_by_its_number_and_the_rest_is_read(home: Path, damage: str) -> None:
    edit, said = DAMAGES[damage]
    folder, made = held(home)
    path = folder / "sweep.jsonl"
    lines = path.read_text().split("\n")
    assert edit(lines[1]) != lines[1]
    path.write_text("\n".join([lines[0], edit(lines[1]), *lines[2:]]))
    found, refused = read_all(folder)
    assert len(found) == len(made) - 1
    [text] = refused
    with pytest.raises(RecordError, match=said):
        raise RecordError(text)
    with pytest.raises(RecordError, match=said):
        records.pack(path, write_one(folder))
    assert main(["tables", "--check", "--home", str(home)]) == 2
    assert path.read_text().split("\n")[2:] == lines[2:]


def write_one(folder: Path) -> list[str]:
    made = record("full")
    write(folder, made)
    return [made["identity"]["run_id"]]


def test_a_damaged_record_is_not_moved(home: Path) -> None:
    folder, _ = held(home)
    before = (folder / "sweep.jsonl").read_text()
    [name] = write_one(folder)
    (folder / f"{name}.json").write_text("{")
    with pytest.raises(RecordError, match="is damaged"):
        records.pack(folder / "sweep.jsonl", [name])
    assert (folder / "sweep.jsonl").read_text() == before
    assert (folder / f"{name}.json").read_text() == "{"


def test_a_file_of_many_that_is_a_folder_is_refused(home: Path) -> None:
    folder, made = held(home)
    (folder / "other.jsonl").mkdir()
    found, refused = read_all(folder)
    assert len(found) == len(made)
    assert refused[0].startswith(f"{folder / 'other.jsonl'} is no regular file")


def test_results_are_fewer_than_100_000_lines() -> None:
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    tracked = [path for path in files if not {"runs", "local"} & set(path.relative_to(ROOT).parts)]
    assert sum(path.read_bytes().count(b"\n") for path in tracked) < 100_000
