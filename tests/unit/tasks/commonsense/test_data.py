"""The suite's data: shipped sample, local files, the pinned published files; what is short or wrong is said."""

import functools
import gzip
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dual_lora.config import ConfigError, DataConfig, DataError, ProtocolConfig, TaskConfig
from dual_lora.tasks import commonsense
from dual_lora.tasks.commonsense import SUBSETS, Commonsense, data
from dual_lora.tasks.commonsense.items import parse

PAPER = ProtocolConfig(
    name="paper", task="commonsense", prompt="alpaca_indented", loss_on="all", validation_examples=120
)
STRICT = ProtocolConfig(
    name="strict", task="commonsense", prompt="alpaca", drop_repeated_examples=True, validation_examples=512
)
DATA = os.environ.get("DUAL_LORA_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="needs DUAL_LORA_DATA with the published files")


def build(protocol=PAPER, subsets=SUBSETS, **source):
    task = TaskConfig(name="commonsense", module="commonsense", label="", subsets=subsets, headline="accuracy")
    return Commonsense(task, protocol, DataConfig(**source))


def item(answer="answer1", question="Why?", options=("a", "b")):
    listed = " ".join(f"Answer{n}: {text}" for n, text in enumerate(options, start=1))
    labels = "/".join(f"answer{n}" for n in range(1, len(options) + 1))
    text = f"Please choose the correct answer to the question: {question}\n\n{listed}\n\nAnswer format: {labels}"
    return {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def write(folder, subset, split, items):
    path = folder / "commonsense" / subset / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def test_the_sample_is_complete_varied_and_disjoint():
    task = build(source="sample")
    train = task.examples("train") + task.examples("validation")
    test = task.examples("test")
    assert Counter(example.subset for example in train) == dict.fromkeys(SUBSETS, 40)
    assert Counter(example.subset for example in test) == dict.fromkeys(SUBSETS, 20)
    questions = [parse(example.fields["instruction"]).question for example in train + test]
    assert len(set(questions)) == len(questions)
    for subset in SUBSETS:
        answers = Counter(example.references[0] for example in test if example.subset == subset)
        assert max(answers.values()) <= 11  # no answer is right by position alone
    assert len({example.identifier for example in train + test}) == len(train + test)


def test_validation_is_the_published_split():
    """`datasets`' train_test_split(test_size=120, shuffle=True, seed=42) is a permutation of NumPy's generator."""
    task = build(
        source="sample",
        protocol=ProtocolConfig(name="paper", task="commonsense", prompt="alpaca", validation_examples=60),
    )
    order = np.random.default_rng(42).permutation(320)
    everything = data.load_split(DataConfig(source="sample"), "train", SUBSETS).examples
    expected = [everything[index].identifier for index in order[:60]]
    assert [example.identifier for example in task.examples("validation")] == expected
    assert [example.identifier for example in task.examples("train")] == [
        everything[index].identifier for index in order[60:]
    ]


def test_a_small_training_set_gives_up_a_fifth_for_validation_and_says_so():
    task = build(STRICT, source="sample")
    assert len(task.examples("validation")) == 64
    assert any("validation: 64 items instead of 512" in note for note in task.notes)


def test_repeated_examples_are_removed_in_strict_alone(tmp_path):
    items = [item(question=f"Why {number}?") for number in range(9)] + [item(question="Why 0?")] * 3
    items.append(item(question="Why 1?", answer="answer2"))  # the same question with another answer is no repetition
    write(tmp_path, "openbookqa", "train", items)
    write(tmp_path, "openbookqa", "test", [item()])
    for protocol, count, noted in ((PAPER, 13, False), (STRICT, 10, True)):
        task = build(protocol, ("openbookqa",), source="local", dir=str(tmp_path))
        assert len(task.examples("train")) + len(task.examples("validation")) == count
        assert any("3 repeated training examples left out" in note for note in task.notes) is noted


def test_counts_are_checked_against_the_published_ones(tmp_path):
    write(tmp_path, "openbookqa", "train", [item()] * 10)
    write(tmp_path, "openbookqa", "test", [item()])
    notes = build(PAPER, ("openbookqa",), source="local", dir=str(tmp_path)).notes
    assert "openbookqa: 10 of 4957 published train items" in notes
    assert "openbookqa: 1 of 500 published test items" in notes


def test_the_published_mixture_is_used_in_its_order_where_it_lies(tmp_path):
    mixture = [item(question=f"Why {number}?") for number in range(50)]
    (tmp_path / "commonsense").mkdir()
    (tmp_path / "commonsense" / "commonsense_170k.json").write_text(json.dumps(mixture))
    task = build(PAPER, source="local", dir=str(tmp_path))
    loaded = data.load_split(task.data, "train", SUBSETS)
    assert [example.fields["instruction"] for example in loaded.examples] == [row["instruction"] for row in mixture]
    assert loaded.notes == ["commonsense_170k: 50 of 170420 published items"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answer": "answer7"},
            r"test\.json, item 2, field 'answer': 'answer7' is not one of the options answer1, ans",
        ),
        ({"input": "x"}, r"item 2, field 'input': must be empty"),
        ({"instruction": "What?"}, r"item 2, field 'instruction': the instruction does not end in 'Answer format"),
        ({"output": 3}, r"item 2, field 'output': expected str, found int"),
    ],
)
def test_a_malformed_item_names_file_item_and_field(tmp_path, change, message):
    write(tmp_path, "openbookqa", "test", [item(), item() | change])
    with pytest.raises(DataError, match=message):
        build(PAPER, ("openbookqa",), source="local", dir=str(tmp_path)).examples("test")


def test_a_missing_file_is_an_error_except_hellaswags_training_set(tmp_path):
    for subset in SUBSETS:
        if subset != "hellaswag":
            write(tmp_path, subset, "train", [])
    with pytest.raises(DataError, match=r"boolq/train\.json.*the list is empty"):
        build(source="local", dir=str(tmp_path)).examples("train")
    with pytest.raises(DataError, match=r"piqa/test\.json.*neither this file nor test\.json\.gz"):
        build(PAPER, ("piqa",), source="local", dir=str(tmp_path)).examples("test")


def test_an_unknown_subset_or_scoring_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"task\.subsets='arc-easy'.*did you mean 'ARC-Easy'"):
        build(PAPER, ("arc-easy",), source="sample")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder that stands for the publisher's repository at the pinned commit, and the ids its files should have."""

    def publish(name, items, *, true_id=True):
        raw = json.dumps(items).encode()
        path = tmp_path / "origin" / data.REVISION / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        identifier = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
        monkeypatch.setitem(data.IDS, name, (identifier if true_id else "0" * 40,))

    monkeypatch.setattr(data, "ORIGIN", f"{tmp_path}/origin/")
    return publish


def test_hub_reads_the_pinned_files(published):
    published("ft-training_set/commonsense_170k.json", [item(question=f"Why {number}?") for number in range(20)])
    published("dataset/openbookqa/test.json", [item()])
    task = build(PAPER, ("openbookqa",), source="hub")
    assert [example.identifier for example in task.examples("test")] == ["openbookqa/test/0"]
    everything = data.load_split(DataConfig(source="hub"), "train", SUBSETS)
    assert len(everything.examples) == 20
    assert list(everything.files) == ["ft-training_set/commonsense_170k.json"]
    assert task.fingerprint()["revision"] == data.REVISION


def test_hub_refuses_a_file_with_another_content(published):
    published("dataset/openbookqa/test.json", [item()], true_id=False)
    with pytest.raises(DataError, match="git blob id .* expected 0000.*damaged or the file was changed"):
        build(PAPER, ("openbookqa",), source="hub").examples("test")


def test_hub_without_a_network_names_the_ways_on(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "ORIGIN", f"{tmp_path}/nowhere/")
    with pytest.raises(
        DataError, match=r"cannot be fetched .* data\.source=local data\.dir=FOLDER .* data\.source=sam"
    ):
        build(source="hub").examples("test")


@needs_data
def test_local_data_has_the_published_counts_and_its_gaps_are_noted(monkeypatch):
    monkeypatch.setattr(commonsense, "load_split", functools.cache(data.load_split))  # 130,515 items, read once
    task = build(PAPER, source="local", dir=DATA)
    test = task.examples("test")
    assert Counter(example.subset for example in test) == {name: data.PUBLISHED[name][1] for name in SUBSETS}
    assert len(task.examples("train")) + len(task.examples("validation")) == 170420 - 39905
    assert task.notes == (
        "hellaswag: no training file, so its results are of a task not trained on",
        "hellaswag: test items without their markup (a little shorter and easier)",
    )
    strict = build(STRICT, source="local", dir=DATA)
    kept = len(strict.examples("train")) + len(strict.examples("validation"))
    assert kept == 9427 + 16107 + 33386 + 40488 + 2251 + 1118 + 4952


@needs_data
@pytest.mark.parametrize("subset", [name for name in SUBSETS if name != "hellaswag"])
def test_local_test_files_are_the_pinned_published_ones(subset):
    raw = gzip.decompress((Path(DATA) / "commonsense" / subset / "test.json.gz").read_bytes())
    assert hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest() == data.IDS[f"dataset/{subset}/test.json"][0]
