"""A record is evidence: what a run did not write so is refused by its file's name, and the rest is read."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dual_lora import records
from dual_lora.config import ConfigError
from dual_lora.records.evidence import checksum
from dual_lora.records.schema import RecordError
from dual_lora.report.records import committed, read_all
from tests import committed as committed_files
from tests.unit.report.report_builder import record, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "records", record("lora"), record("dual_lora"))


def change(path: Path, *place: str | int, to: Any) -> None:
    """Change one value of a record's file, by hand."""
    values = json.loads(path.read_text())
    held = values
    for part in place[:-1]:
        held = held[part]
    held[place[-1]] = to
    path.write_text(json.dumps(values))


FIRST = ("scores", "measurements", 0)
EDITS = {
    "a score, everywhere": ([(*FIRST, "metrics", "accuracy"), ("scores", "headline", "value")], 0.99, "changed after"),
    "the headline alone": ([("scores", "headline", "value")], 0.99, "scores.headline is accuracy 0.99 of boolq, which"),
    "a measurement alone": ([(*FIRST, "metrics", "accuracy")], 0.99, r"which no measurement holds \(they hold \[0.99"),
    "a setting": ([("identity", "recipe", "learning_rate")], 1.0, "but its settings are those of run"),
    "a seed": ([("identity", "seed")], 5, "but its settings are those of run"),
    "seconds": ([("cost", "train_seconds")], 1.0, "changed after the run wrote it"),
    "no items": ([(*FIRST, "items")], 0, "measurements.0.items: Input should be greater than or equal to 1"),
    "fewer than none": ([(*FIRST, "items")], -5, "measurements.0.items: Input should be greater than or equal to 1"),
    "unreadable": ([(*FIRST, "unreadable")], 1001, "1001 unreadable replies to 1000 items"),
    "negative time": ([("cost", "train_seconds")], -1.0, "cost.train_seconds: Input should be greater than or equal"),
    "negative memory": ([("cost", "peak_memory_bytes")], [-1], "cost.peak_memory_bytes.0: Input should be greater"),
    "another type": ([("scores",)], 5, "scores: "),
    "a newer schema": ([("schema",)], 99, "schema=99; this version of the suite reads schema 1 to"),
    "no schema": ([("schema",)], True, "schema=True"),
    "no checksum": ([("checksum",)], None, "its checksum is None"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_record_edited_by_hand_is_refused_by_name_and_the_rest_is_read(folder: Path, name: str) -> None:
    places, to, said = EDITS[name]
    path, other = sorted(folder.glob("*.json"))
    for place in places:
        change(path, *place, to=to)
    with pytest.raises(RecordError, match=said) as refused:
        records.read(path)
    assert str(path) in str(refused.value)
    read, refusals = read_all(folder)
    assert [entry.run_id for entry in read] == [other.stem]
    assert refusals == [str(refused.value)]


DAMAGES = {
    "empty": ("", r"is damaged \(Expecting value"),
    "cut": ('{"schema": 3, "sta', "is damaged"),
    "nested": ("[" * 100_000, r"is damaged \(nested too deeply\)"),
    "nested, closed": ('{"a": ' * 20_000 + "1" + "}" * 20_000, r"is damaged \(nested too deeply\)"),
    "a long number": ('{"schema": ' + "9" * 5000 + "}", r"is damaged \(Exceeds the limit"),
    "no number": ('{"schema": 3, "value": NaN}', r"is damaged \(NaN is no number of JSON\)"),
    "infinite": ('{"schema": 3, "value": -Infinity}', "Infinity is no number of JSON"),
    "a list": ("[]", "not a JSON object"),
    "no text": (b"\xff\xfe\x00", "is damaged"),
    "a word": ('"finished"', "not a JSON object"),
    "no identity": ('{"schema": 3, "status": "finished"}', "identity: Field required"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_by_name_and_the_rest_is_read(folder: Path, name: str) -> None:
    content, said = DAMAGES[name]
    path = folder / "damaged.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecordError, match=said) as refused:
        records.read(path)
    assert str(path) in str(refused.value)
    read, refusals = read_all(folder)
    assert len(read) == 2
    assert refusals == [str(refused.value)]


def test_a_number_out_of_range_is_refused(folder: Path) -> None:
    path = min(folder.glob("*.json"))
    path.write_text(path.read_text().replace('"train_loss": [[1, 3.0]', '"train_loss": [[1, 1e400]'))
    with pytest.raises(RecordError, match="a number in it is out of range"):
        records.read(path)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("execution", "cards"), 5, r"execution\.cards: "),
        (("execution", "device"), None, r"execution\.device: "),
        (("origin", "started"), 17, r"origin\.started: "),
        (("origin", "versions"), {"torch": None}, r"origin\.versions\.torch: "),
        (("curves", "train_loss"), [[1, "x"]], r"curves\.train_loss"),
        (("curves", "train_loss"), [[1]], r"curves\.train_loss"),
    ],
)
def test_another_type_is_refused_by_its_place_also_under_a_right_checksum(folder, place, value, told):
    """Tables read these parts as well, and ended in a TypeError."""
    path = sorted(folder.glob("*.json"))[0]
    values = json.loads(path.read_text())
    values[place[0]][place[1]] = value
    path.write_text(json.dumps({**values, "checksum": checksum(values)}))
    held, refused = read_all(folder)
    assert len(held) == 1
    [said] = refused
    assert re.search(rf"{path.name}: {told}", str(said))


def test_a_pipe_is_no_record_and_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    read, refusals = read_all(folder)
    assert len(read) == 2
    assert [text.partition(";")[0] for text in refusals] == [
        f"{folder / name} is no regular file" for name in ("folder.json", "pipe.json")
    ]


def test_a_record_under_another_name_is_refused(folder: Path) -> None:
    path = min(folder.glob("*.json"))
    copied = path.rename(folder / "0123456789abcdef.json")
    with pytest.raises(RecordError, match=f"it says it is of run {path.stem}"):
        records.read(copied)


def test_it_is_an_error_that_a_run_explains_in_one_line() -> None:
    assert issubclass(RecordError, ConfigError)


def test_what_is_written_is_read(folder: Path) -> None:
    for path in folder.glob("*.json"):
        made = records.read(path)
        assert made is not None
        before = copy.deepcopy(made)
        assert records.write(path, {**made, "message": "changed by the suite"}) == records.read(path)
        assert made == before
    assert records.read(folder / "none.json") is None


def test_every_committed_record_has_a_checksum() -> None:
    assert [held["identity"]["run_id"] for held in committed_files.values() if "checksum" not in held] == []


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def test_outside_a_repository_every_record_counts(folder: Path) -> None:
    assert committed(folder) == sorted(folder.glob("*.json"))


def test_in_a_repository_those_count_that_git_tracks(folder: Path) -> None:
    git(folder.parent, "init", "-q")
    first, _ = sorted(folder.glob("*.json"))
    git(folder.parent, "add", str(first))
    assert committed(folder) == [first]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
def test_a_clone_that_git_does_not_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(folder.parent, "init", "-q")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    for path in (folder.parent, folder.parent / ".git"):
        os.chown(path, 12345, 12345)
    with pytest.raises(RecordError, match=r"dubious ownership.*safe\.directory"):
        committed(folder)


def test_a_repository_without_git_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(folder.parent, "init", "-q")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RecordError, match="git cannot be run"):
        committed(folder)
