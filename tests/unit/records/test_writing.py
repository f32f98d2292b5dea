"""The record: written whole or not at all, read back as written, and fit to be shared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from dual_lora import records, shipped
from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.launch import local
from dual_lora.records import redaction
from dual_lora.report.records import read_all
from dual_lora.runs import lifecycle
from dual_lora.runs.identity import identity
from dual_lora.runs.resolve import resolve
from tests import ROOT, committed
from tests.unit.report.report_builder import record


def test_a_record_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    identity = {**record("lora")["identity"], "target": ("q", "v")}
    identity["run_id"] = records.run_id(identity)
    path = records.record_path(tmp_path, identity["run_id"])
    made = records.write(path, records.build(status="failed", identity=identity, scores={"notes": ["é"]}))
    assert records.read(path) == made
    assert made["identity"]["target"] == ["q", "v"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_its_layout_changes_nothing(values: object) -> None:
    assert json.loads(records.dumps(values)) == values


def test_a_curve_takes_one_line_and_so_does_what_fits() -> None:
    curve = [[step, step / 7] for step in range(200)]
    values = {"curves": {"train_loss": curve, "gradient_norm": curve}, "cost": {"steps": 3, "seconds": 1.5}}
    assert len(records.dumps(values).splitlines()) == 7
    rows = {"last.test.cloze": {"accuracy": dict.fromkeys(("boolq", "piqa"), "b1 4000x1 " + "A" * 666)}}
    assert len(records.dumps(rows).splitlines()) == 5
    texts = {"notes": ["a sentence of a note that is not short " * 3] * 2}
    assert len(records.dumps(texts).splitlines()) == 6


def test_committed_records_are_laid_out_so() -> None:
    assert committed.texts()
    longest = 0
    for (place, text), values in zip(committed.texts(), committed.values(), strict=True):
        longest = max(longest, len(text.splitlines()))
        laid_out = records.dumps(values) + "\n" if text.startswith("{\n") else json.dumps(values, ensure_ascii=False)
        assert text == laid_out, f"{place}: written by another version or by hand"
    assert longest < 300


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    records.write_json(path, {"old": True})
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_its_name_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "a.bin"
    with records.replacing(path) as part:
        part.write_text("first")
        assert part.parent == path.parent
        assert not path.exists()

    def stopped() -> None:
        with records.replacing(path) as part:
            part.write_text("half of the sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_record_with_a_learning_rate_curve_reads_as_one_without(tmp_path: Path) -> None:
    """Schema 1 kept the curve; these are points of one that a run of this record's identity kept."""
    path = ROOT / "results" / "records" / "018ac3b0ab826078.json"
    made = records.read(path)
    assert made is not None
    kept = [[10, 0.00034615385], [20, 0.000485], [100, 0.000285], [180, 8.5e-05], [210, 1e-05]]
    del made["checksum"]
    old = {**made, "schema": 1, "curves": {"learning_rate": kept, **made["curves"]}}
    records.write_json(tmp_path / path.name, old)
    assert records.read(tmp_path / path.name) == made
    derived = records.learning_rates(made)
    assert [step for step, _ in derived] == [step for step, _ in made["curves"]["train_loss"]]
    assert [point for point in derived if point[0] in dict(kept)] == kept


def test_a_record_made_without_git_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package and an unpacked archive have no commit."""
    monkeypatch.setattr(shipped, "IN_CHECKOUT", False)
    identity = record("lora")["identity"]
    identity["run_id"] = records.run_id(identity)
    path = records.record_path(tmp_path, identity["run_id"])
    made = records.write(path, records.build(status="failed", identity=identity))
    assert (made["origin"]["commit"], made["origin"]["dirty"]) == (None, None)
    held, refused = read_all(path.parent)
    assert [one.run_id for one in held] == [identity["run_id"]]
    assert refused == []


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "share"), [(0, 0.0), (7, 0.0), (0, 0.06), (90, 0.0)])
def test_learning_rates_are_those_of_the_library(schedule: str, warmup: int, share: float) -> None:
    steps, rate = 53, 3e-4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    library = transformers.get_scheduler(name, optimizer, warmup or math.ceil(share * steps), steps)
    expected = []
    for step in range(1, steps + 1):
        expected.append([step, pytest.approx(library.get_last_lr()[0], rel=1e-7, abs=0.0)])
        optimizer.step()
        library.step()
    recipe = {"learning_rate": rate, "schedule": schedule, "warmup_steps": warmup, "warmup_ratio": share}
    made = {
        "identity": {"recipe": recipe, "profile": {"max_steps": None, "train_examples": None}},
        "cost": {"steps": steps},
        "curves": {"train_loss": [[step, 1.0] for step in range(1, steps + 1)]},
    }
    assert records.learning_rates(made) == expected


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert records.digest({"a": 1, "b": [1, 2]}) == records.digest({"b": [1, 2], "a": 1})
    assert records.digest({"a": 1}) != records.digest({"a": 2})


SECRET = "hf_" + "a1" * 16


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MY_API_KEY", "a-value-of-no-known-form")
    return "a-value-of-no-known-form"


def test_a_secret_pulled_into_a_label_is_in_no_file(tmp_path: Path, secret: str) -> None:
    words = ["task=e2e", "model=tiny_gpt2", "method=none", "data.source=sample", "launch.device=cpu", "profile=quick"]
    words += ["profile.test_items=1", "protocol.decoding.beams=1", "protocol.decoding.max_new_tokens=2"]
    words += ["task.metrics=[BLEU]", "method.label=${oc.env:MY_API_KEY}", f"model.label=of {SECRET}"]
    words += [f"launch.setup=['export HF_TOKEN={SECRET}', 'export A_PASSWORD=\"two words\"']"]
    [config] = compose([*words, f"results={tmp_path}"])
    resolved = resolve(config)
    made = lifecycle.run(resolved)
    assert made["status"] == "finished"
    assert made["identity"]["model"]["label"] == "of ***"
    worker = lifecycle.load_config(local.write_config(resolved))
    assert resolve(worker).run_id == made["identity"]["run_id"], "a worker names the run as its parent does"
    assert worker.results == str(tmp_path)
    for path in tmp_path.rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        assert not any(word.encode() in text for word in (secret, SECRET, "two words")), path


def test_a_secret_in_a_setting_that_names_the_run_is_refused() -> None:
    [config] = compose(["task=e2e", "model=tiny_gpt2", "data.source=sample", f"protocol.prompt={SECRET}"])
    with pytest.raises(ConfigError, match="protocol.prompt holds a token or a key"):
        identity(config, dtype="float32", model_fingerprint={}, data_fingerprint={})


def test_nothing_in_a_committed_record_looks_like_a_secret() -> None:
    shown: set[str] = set()  # most records say the same

    def collect(value: Any) -> None:
        if isinstance(value, str):
            shown.add(value)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(inner)

    for made in committed.values():
        collect([made[part] for part in ("identity", "execution", "origin")])
    assert len(shown) > 1000
    assert [text for text in shown if redaction.hide(text) != text] == []
