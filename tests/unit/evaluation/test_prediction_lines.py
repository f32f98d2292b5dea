"""A reply may hold what Unicode calls a line's end; its line in the file of predictions stays one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

from dual_lora.evaluation.evaluator import _Kept, predictions_sha256
from dual_lora.evaluation.prediction_lines import read_values
from dual_lora.evaluation.rescoring import _readings, _values

REPLIES = ["plain", "line\u2028separator", "next\x85line", "para\u2029graph\x1c", "new\r\nline", ""]


def kept(folder: Path) -> Path:
    path = folder / "predictions" / "last.test.generate.jsonl"
    made = _Kept.read(path, len(REPLIES))
    with made:
        made.add(made.share(0, 1), REPLIES)
    return path


def test_every_reader_gets_the_replies_back(tmp_path: Path) -> None:
    path = kept(tmp_path)
    assert _Kept.read(path, len(REPLIES)).values == dict(enumerate(REPLIES))
    assert read_values(path) == dict(enumerate(REPLIES))
    hashes = predictions_sha256(path.parent)
    text = "\n".join(json.dumps({"index": i, "value": v}, ensure_ascii=False) for i, v in enumerate(REPLIES))
    assert hashes == {"last.test.generate": hashlib.sha256(text.encode()).hexdigest()}
    task = SimpleNamespace(read=lambda reply, item: reply)
    items = [SimpleNamespace(identifier=str(number)) for number in range(len(REPLIES))]
    known = {"origin": {"predictions_sha256": hashes}}
    readings = _readings(_values(known, path.parent, None, "last", "generate"), task, items, "generate")
    assert len(readings) == len(REPLIES)


def test_an_evaluation_goes_on_after_such_a_reply(tmp_path: Path) -> None:
    path = kept(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # the process died within the last line
    found = _Kept.read(path, len(REPLIES))
    assert found.share(0, 1) == [len(REPLIES) - 1]
    assert [found.values[index] for index in range(len(REPLIES) - 1)] == REPLIES[:-1]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "last.test.generate.jsonl").touch()
    assert read_values(tmp_path / "predictions" / "last.test.generate.jsonl") == {}
