"""Whatever a reader is given, it reads it or refuses it in a sentence: no other error, nothing that hangs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import load_file, save

from dual_lora import methods, records
from dual_lora.config import ConfigError, DataError, RunConfig
from dual_lora.config.compose import compose
from dual_lora.config.words import for_hydra
from dual_lora.evaluation import archive
from dual_lora.evaluation.prediction_lines import line, read_values, sha256
from dual_lora.methods import saved
from dual_lora.metrics import texts
from dual_lora.records import evidence
from dual_lora.records.schema import RecordError
from dual_lora.report import escape
from dual_lora.tasks import dart, e2e, files, webnlg
from dual_lora.tasks.commonsense import items
from dual_lora.tasks.glue.reading import read_tsv
from dual_lora.tasks.glue.specs import SPECS
from tests.unit.report.report_builder import record

FEW = settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
HOSTILE = [b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"1e400", b"NaN", b"\x00" * 9, b"\xff\xfe\x00", b"null", b""]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def damaged(raw: bytes) -> SearchStrategy[bytes]:
    """Return a file as disks, editors and downloads leave it: cut, with other bytes in it, in part twice."""
    place = st.integers(0, max(0, len(raw) - 1))
    cut = place.map(lambda end: raw[:end])
    other = st.tuples(place, st.binary(min_size=1, max_size=6)).map(lambda c: raw[: c[0]] + c[1] + raw[c[0] + 1 :])
    twice = st.tuples(place, place).map(lambda c: raw[: c[0]] + raw[min(c) : max(c)] + raw[c[0] :])
    return cut | other | twice | st.binary(max_size=40) | st.sampled_from(HOSTILE)


def changed(values: Any) -> SearchStrategy[Any]:
    """Return a JSON value with one of its entries, at any depth, replaced by another value."""
    places: list[tuple[Any, ...]] = []

    def walk(held: Any, path: tuple[Any, ...]) -> None:
        places.append(path)
        inner = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ()
        for key, value in inner:
            walk(value, (*path, key))

    walk(values, ())

    def put(held: Any, path: tuple[Any, ...], value: Any) -> Any:
        if not path:
            return value
        copied = dict(held) if isinstance(held, dict) else list(held)
        copied[path[0]] = put(held[path[0]], path[1:], value)
        return copied

    return st.tuples(st.sampled_from(places), JSON).map(lambda change: put(values, *change))


def held(read: Callable[[], Any], refusal: type[Exception], named: str = "") -> None:
    """Call a reader: any other error than this one is a fault, and this one has words that name what is refused."""
    said = "read"
    try:
        read()
    except refusal as error:
        said = str(error)
    assert said.strip()
    assert named in said or said == "read"
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


RECORD = record("lora")
E2E = ["model=tiny_llama", "task=e2e", "method=lora", "data.source=sample"]
CONFIG = compose(E2E)[0].to_dict()


@FEW
@given(changed(RECORD))
def test_a_record_with_any_value_in_any_place_is_read_or_refused(folder: Path, values: Any) -> None:
    path = folder / "record.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    held(lambda: records.read(path), RecordError)


@FEW
@given(damaged(records.dumps(RECORD).encode()))
def test_a_damaged_record_is_refused(folder: Path, raw: bytes) -> None:
    path = folder / "record.json"
    path.write_bytes(raw)
    held(lambda: records.read(path), RecordError)
    found, refused = evidence.read_each([path])
    assert not found
    assert len(refused) == 1


TWO = [{**made, "checksum": evidence.checksum(made)} for made in (RECORD, record("dual_lora"))]


@FEW
@given(damaged("".join(f"{json.dumps(made)}\n" for made in TWO).encode()))
def test_a_damaged_file_of_many_records_gives_whole_ones_and_names_the_lines_of_others(
    folder: Path, raw: bytes
) -> None:
    path = folder / "many" / "sweep.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    found, refused = records.read_folder(path.parent)
    assert all(made in TWO for made in found)
    assert all(text.startswith(f"{path}, line ") for text in refused)
    held(lambda: records.read(path.with_name("0123456789abcdef.json")), RecordError)


REPLIES = ["a reply", "b\u2028c"]
SCORED = {
    "scores": {"measurements": [{"checkpoint": "last", "split": "test", "scoring": "generate"}]},
    "origin": {"predictions_sha256": {"last.test.generate": sha256(map(line, range(2), REPLIES))}},
}


@FEW
@given(damaged(gzip.compress(json.dumps({"predictions": "last.test.generate", "values": REPLIES}).encode(), mtime=0)))
def test_a_damaged_archive_of_replies_is_read_whole_or_refused(folder: Path, raw: bytes) -> None:
    path = folder / "replies.jsonl.gz"
    path.write_bytes(raw)

    def read() -> None:
        assert archive.read(SCORED, path) == {"last.test.generate": REPLIES}

    held(read, ConfigError, str(path))


@FEW
@given(changed(CONFIG))
def test_settings_with_any_value_in_any_place_are_taken_or_refused(values: Any) -> None:
    if isinstance(values, dict):  # what Hydra composes is one
        held(lambda: RunConfig.from_dict(values), ConfigError)


@settings(FEW, max_examples=8)
@given(st.lists(st.tuples(st.sampled_from(["results", "data.dir", "model.label", "seed", "method.r", "task.metrics"]),
                          st.text(max_size=8)), max_size=2))  # fmt: skip
def test_any_words_of_a_command_line_are_taken_or_refused(pairs: list[tuple[str, str]]) -> None:
    words = [f"{key}={value}" for key, value in pairs]
    held(lambda: for_hydra(words), ConfigError)
    held(lambda: compose([*E2E, *words]), ConfigError)


GLUE = "index\tsentence1\tsentence2\tlabel\n0\tOne.\tTwo.\tentailment\n1\tThree.\tFour.\tnot_entailment\n"
WEBNLG = {
    "entries": [
        {"1": {"category": "Food", "lexicalisations": [{"comment": "good", "lex": "A text."}],
               "modifiedtripleset": [{"subject": "a", "property": "b", "object": "c"}]}},
    ]
}  # fmt: skip
DART = [{"tripleset": [["a", "b", "c"]], "annotations": [{"source": "x", "text": "A text."}]}]
ITEM = {
    "instruction": "Please choose the correct answer: Why?\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2",
    "input": "", "output": "the correct answer is answer1", "answer": "answer1",
}  # fmt: skip
READERS: dict[str, tuple[bytes, Callable[[Path, str], Any]]] = {
    "test.txt": (b"name : Blue Spice | Type : pub||A pub .\n", e2e.read_lora),
    "testset_w_refs.csv": (b'mr,ref\n"name[Blue Spice], eatType[pub]","A pub."\n',
                           lambda where, _: e2e.read_official(where, "test")),
    "train.json": (json.dumps(WEBNLG).encode(), webnlg.read_entries),
    "dev.json": (json.dumps(DART).encode(), lambda where, _: dart.read_json(where, "validation")),
    "test.xml": (b"<e><entry><mtriple>a | b | c</mtriple><lex>T</lex></entry></e>",
                 lambda where, _: dart.read_test(where)),
    "train.tsv": (GLUE.encode(), lambda where, _: read_tsv(where, SPECS["rte"], "train", "rte")),
    "list.json": (json.dumps([ITEM]).encode(),
                  lambda where, name: files.read_json_list(where, name, {"instruction": str, "answer": str})),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_data_file_is_read_or_refused_by_name(folder: Path, name: str) -> None:
    raw, read = READERS[name]

    @FEW
    @given(damaged(raw))
    def check(content: bytes) -> None:
        (folder / name).write_bytes(content)
        held(lambda: read(folder, name), DataError, name)

    check()


@pytest.mark.parametrize(("name", "values"), [("train.json", WEBNLG), ("dev.json", DART), ("list.json", [ITEM])])
def test_json_data_with_any_value_in_any_place_is_read_or_refused(folder: Path, name: str, values: Any) -> None:
    @FEW
    @given(changed(values))
    def check(content: Any) -> None:
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        held(lambda: READERS[name][1](folder, name), DataError)

    check()


def adapter(folder: Path) -> bytes:
    import torch

    raw = save({"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.zeros(3, 2)})
    (folder / "adapter_model.safetensors").write_bytes(raw)
    return raw


def test_a_damaged_adapter_is_read_or_refused(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"

    @FEW
    @given(damaged(adapter(folder)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        held(lambda: methods.stored_state(path), ConfigError)

    check()
    adapter(folder)
    assert load_file(path).keys() == methods.stored_state(path).keys()


@FEW
@given(damaged(b'{"peft_type": "LORA", "base_model_name_or_path": "x"}') | JSON.map(lambda v: json.dumps(v).encode()))
def test_a_damaged_adapter_config_is_read_or_refused(folder: Path, content: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    held(lambda: saved.settings(folder), ConfigError)


ANY = st.text(max_size=30) | st.lists(
    st.sampled_from(["the correct answer is", "answer1", "true", "\u2028", "1", "-", "ending2", "\n"]), max_size=6
).map(" ".join)


@FEW
@given(ANY, st.sampled_from(sorted(items.SUBSETS)))
def test_any_reply_is_read_as_an_answer_of_its_task_or_as_none(reply: str, subset: str) -> None:
    word = items.read(subset, reply)
    assert word is None or word in reply
    chosen = items.read_text(reply, items.parse(ITEM["instruction"]))
    assert chosen in (None, "answer1", "answer2")


@FEW
@given(ANY.filter(lambda text: text[:1] < "\ud800" or text == ""))
def test_any_reply_can_be_scored_and_shown(reply: str) -> None:
    held(lambda: texts.check([reply], [["a reference"]]), texts.ScoreInputError)
    for shown in (escape.markdown, escape.latex, escape.csv, escape.terminal):
        assert len(shown(reply).splitlines()) <= 1


@FEW
@given(damaged(b'{"index": 0, "value": "a reply"}\n{"index": 1, "value": "b\xe2\x80\xa8c"}\n'))
def test_damaged_predictions_keep_what_is_whole(folder: Path, content: bytes) -> None:
    path = folder / "predictions.jsonl"
    path.write_bytes(content)
    assert all(type(index) is int and index >= 0 for index in read_values(path))
