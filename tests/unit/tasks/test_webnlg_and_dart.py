"""WebNLG and DART: linearised triples, seen and unseen, refusals, and DART's missing training split."""

import json
import os

import pytest

from dual_lora.config import ConfigError, DataError
from dual_lora.config.compose import compose
from dual_lora.tasks import dart as dart_task
from dual_lora.tasks import downloads
from dual_lora.tasks import webnlg as webnlg_task

needs_data = pytest.mark.skipif("DUAL_LORA_DATA" not in os.environ, reason="needs DUAL_LORA_DATA")


def task(name, folder, *arguments):
    metrics = "task.metrics=[BLEU,TER]"
    config = compose([f"task={name}", metrics, "data.source=local", f"data.dir={folder}", *arguments])[0]
    return {"webnlg": webnlg_task, "dart": dart_task}[name].build(config)


def entry(number, category="Airport", comment="good", obj="Jacob_Bundsgaard"):
    triple = {"subject": "Aarhus", "property": "leaderName", "object": obj}
    text = {"comment": comment, "lex": "The leader of Aarhus is Jacob Bundsgaard."}
    return {str(number): {"category": category, "lexicalisations": [text], "modifiedtripleset": [triple]}}


def webnlg(tmp_path, *entries):
    folder = tmp_path / "webnlg_2017"
    folder.mkdir()
    (folder / "test.json").write_text(json.dumps({"entries": list(entries)}), encoding="utf-8")
    return task("webnlg", tmp_path)


def test_webnlg_triples_are_linearised_and_texts_not_good_left_out(tmp_path):
    examples = webnlg(tmp_path, entry(1), entry(2, comment="toFix", obj="X")).examples("test")
    assert [example.fields["input"] for example in examples] == ["Aarhus : leaderName : Jacob_Bundsgaard"]


def test_webnlg_scores_seen_unseen_and_all(tmp_path):
    loaded = webnlg(tmp_path, entry(1), entry(2, category="Artist"))
    examples = loaded.examples("test")
    scores = loaded.score(["The leader of Aarhus is Jacob Bundsgaard.", ""], examples, "generate")
    assert [(score.subset, score.items) for score in scores] == [("seen", 1), ("unseen", 1), ("all", 2)]
    assert [score.metrics["TER"] for score in scores] == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"2": {"category": "City", "lexicalisations": []}}, "item 2, field 'modifiedtripleset'"),
        (entry(2, obj=None), "item 2, field 'modifiedtripleset': malformed triple"),
        ({"2": {**entry(2)["2"], "lexicalisations": [{"comment": "good", "lex": " "}]}}, "item 2, field 'lex'"),
        (["x"], "item 2: expected"),
    ],
)
def test_bad_webnlg_items_are_refused_with_their_place(tmp_path, bad, message):
    with pytest.raises(DataError, match=f"test.json, {message}"):
        webnlg(tmp_path, entry(1), bad).examples("test")


def dart(tmp_path, xml):
    folder = tmp_path / "dart_v1.1.1_partial"
    folder.mkdir()
    (folder / "test.xml").write_text(xml, encoding="utf-8")
    return task("dart", tmp_path)


def test_dart_properties_are_lower_cased_and_an_empty_text_left_out(tmp_path):
    xml = (
        "<benchmark><entries><entry><modifiedtripleset><mtriple>Ali | BIRTH_YEAR | 1942</mtriple></modifiedtripleset>"
        "<lex>Ali was born in 1942.</lex><lex/></entry></entries></benchmark>"
    )
    (example,) = dart(tmp_path, xml).examples("test")
    assert example.fields["input"] == "Ali : birth_year : 1942"
    assert example.references == ("Ali was born in 1942.",)


def test_bad_dart_files_are_refused_with_their_place(tmp_path):
    with pytest.raises(DataError, match="test.xml, line 2: not valid XML"):
        dart(tmp_path, "<benchmark>\n<entries>").examples("test")


def test_darts_training_split_comes_from_the_hub_and_says_so(tmp_path, monkeypatch):
    asked = []

    def rows(repository, revision, file):
        asked.append((repository, file))
        return [{"tripleset": [["A", "B", "C"]], "annotations": {"source": ["x"], "text": ["A is C."]}}]

    monkeypatch.setattr(downloads, "parquet_rows", rows)
    partial = task("dart", tmp_path)
    assert partial.examples("train")[0].fields["input"] == "A : b : C"
    assert asked == [("Yale-LILY/dart", "default/train/0000.parquet")]
    assert any("training split is the hub's copy" in note for note in partial.notes)


def test_there_is_no_sample_and_the_message_says_what_is():
    with pytest.raises(ConfigError, match="webnlg has no sample"):
        webnlg_task.build(compose(["task=webnlg", "data.source=sample"])[0])


@needs_data
@pytest.mark.parametrize(("name", "items", "pairs"), [("webnlg", 1862, 2258), ("dart", 4159, 6980)])
def test_the_real_data_have_their_published_sizes(name, items, pairs):
    real = task(name, os.environ["DUAL_LORA_DATA"])
    assert len(real.examples("test")) == items
    assert len(real.examples("validation")) == pairs
