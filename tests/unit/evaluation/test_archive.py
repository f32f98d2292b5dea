"""What a run wrote is kept next to its record, small and the same bytes, and only if it is the record's."""

from __future__ import annotations

import dataclasses
import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from dual_lora.config import ConfigError
from dual_lora.evaluation import archive
from dual_lora.evaluation.prediction_lines import line, sha256
from dual_lora.evaluation.rescoring import rescore
from dual_lora.runs.identity import rebuilt
from tests import ROOT, committed

DATA = os.environ.get("DUAL_LORA_DATA")
REPLIES = ["a reply", "", "zwei\u2028Zeilen\u0085 und \U0001f600", '{"index": 7}\n']
NAME = "last.test.generate"


def record(values: list[str] = REPLIES, name: str = NAME) -> dict[str, Any]:
    checkpoint, split, scoring = name.split(".")
    entry = {"checkpoint": checkpoint, "split": split, "scoring": scoring}
    others = [{**entry, "split": "validation", "scoring": "loss"}, {**entry, "scoring": "cloze"}]
    held = sha256(line(index, value) for index, value in enumerate(values))
    return {"scores": {"measurements": [entry, *others]}, "origin": {"predictions_sha256": {name: held}}}


def test_replies_come_back_as_they_were(tmp_path: Path) -> None:
    path = archive.path(tmp_path, "run")
    assert archive.write(record(), {NAME: REPLIES}, path)
    assert archive.read(record(), path) == {NAME: REPLIES}
    before = path.read_bytes()
    assert archive.write(record(), {NAME: tuple(REPLIES)}, path)
    assert path.read_bytes() == before, "the same replies are the same bytes"


def test_only_the_replies_of_the_record_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = archive.path(tmp_path, "run")
    for values in ({}, {NAME: REPLIES[:-1]}, {NAME: ["another", *REPLIES[1:]]}):
        assert not archive.write(record(), values, path)
        assert "not those of the record" in caplog.text
    assert not path.exists()


def test_more_than_the_limit_is_not_kept_and_the_log_says_so(tmp_path: Path, caplog: Any) -> None:
    path, random = archive.path(tmp_path, "run"), os.urandom(archive.LIMIT).hex()
    assert not archive.write(record([random]), {NAME: [random]}, path)
    assert "no archive of the replies: " in caplog.text
    assert f"more than {archive.LIMIT:,}" in caplog.text
    assert not path.parent.exists()


DAMAGES = {
    "cut": lambda content: content[:-9],
    "empty": lambda content: b"",
    "not packed": gzip.decompress,
    "a bit": lambda content: content[:20] + bytes([content[20] ^ 4]) + content[21:],
    "another type": lambda content: gzip.compress(b"[]\n"),
    "no lines": lambda content: gzip.compress(b""),
    "another reply": lambda content: gzip.compress(gzip.decompress(content).replace(b"a reply", b"a Reply")),
    "a reply less": lambda content: gzip.compress(gzip.decompress(content).replace(b'"a reply", ', b"")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_named(tmp_path: Path, damage: str) -> None:
    path = archive.path(tmp_path, "run")
    archive.write(record(), {NAME: REPLIES}, path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ConfigError, match=r"run\.jsonl\.gz (cannot be read|does not have the predictions)"):
        archive.read(record(), path)


def archived() -> list[tuple[dict[str, Any], Path]]:
    places = ((values, archive.path(ROOT / "results", values["identity"]["run_id"])) for values in committed.values())
    return [(values, path) for values, path in places if path.exists()]


def test_the_committed_ones_are_those_of_their_records() -> None:
    found = archived()
    assert len(found) >= 28
    assert {path.name for _, path in found} == {path.name for path in (ROOT / "results" / "predictions").iterdir()}
    for values, path in found:
        assert archive.read(values, path).keys() == set(archive.replies(values))
        assert path.stat().st_size <= archive.LIMIT


@pytest.mark.skipif(not DATA, reason="DUAL_LORA_DATA is unset")
def test_a_reviewer_gets_the_committed_scores_from_the_committed_replies() -> None:
    values, path = next(one for one in archived() if one[0]["identity"]["profile"]["name"] == "study")
    config = rebuilt(values["identity"], DATA)
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, metrics=("BLEU",)))
    kept = [{**entry, "metrics": {"BLEU": entry["metrics"].get("BLEU")}} for entry in of_replies(values)]
    others = [entry for entry in values["scores"]["measurements"] if entry not in of_replies(values)]
    asked = {**values, "scores": {**values["scores"], "measurements": kept + others}}
    made = rescore(asked, config, path)
    assert [entry["metrics"] for entry in of_replies(made)] == [entry["metrics"] for entry in kept]
    assert made["scores"]["headline"] == values["scores"]["headline"]


def of_replies(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in values["scores"]["measurements"] if entry["scoring"] == "generate"]
