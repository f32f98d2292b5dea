"""The E2E scores: the official scorer's own example, edge cases, refusals, and life without Java."""

import os
import time
from pathlib import Path

import pytest

from dual_lora.metrics import coco, e2e, java
from dual_lora.metrics.texts import ScoreInputError

needs_java = pytest.mark.skipif(not java.available(), reason="needs Java")
needs_data = pytest.mark.skipif("DUAL_LORA_DATA" not in os.environ, reason="needs DUAL_LORA_DATA")
WITHOUT_METEOR = ["BLEU", "NIST", "ROUGE_L", "CIDEr"]


def scorer_example():
    folder = Path(os.environ["DUAL_LORA_DATA"]) / "e2e" / "scorer_example"
    predictions = (folder / "baseline-output.txt").read_text(encoding="utf-8").strip().split("\n")
    groups = (folder / "devel-conc.txt").read_text(encoding="utf-8").strip().split("\n\n")
    return predictions, [group.split("\n") for group in groups]


@needs_java
@needs_data
def test_the_official_example_has_the_official_scores():
    scores = e2e.score(*scorer_example())
    official = {"BLEU": 0.7203, "NIST": 7.8212, "METEOR": 0.4801, "ROUGE_L": 0.7910, "CIDEr": 2.3039}
    assert scores == pytest.approx(official, abs=5e-5)


@needs_data
def test_the_python_option_gives_its_own_nist():
    scores = e2e.score(*scorer_example(), metrics=["BLEU", "NIST"], variant="python")
    assert scores == pytest.approx({"BLEU": 0.7203, "NIST": 7.7889}, abs=5e-5)


@needs_java
def test_an_empty_prediction_is_scored_and_not_dropped():
    references = [["The Eagle is a pub."], ["The Mill is a pub near the river.", "Near the river is The Mill."]]
    full = e2e.score(["The Eagle is a pub.", "The Mill is a pub near the river."], references, metrics=WITHOUT_METEOR)
    half = e2e.score(["The Eagle is a pub.", ""], references, metrics=WITHOUT_METEOR)
    assert all(half[metric] < full[metric] for metric in WITHOUT_METEOR)
    assert e2e.score(["", ""], references, metrics=WITHOUT_METEOR) == pytest.approx(dict.fromkeys(WITHOUT_METEOR, 0.0))


@needs_java
@pytest.mark.slow
def test_empty_predictions_alone_have_a_meteor_of_0():
    """In the short tests METEOR has one empty prediction of two: test_metrics_nlg.py."""
    references = [["The Eagle is a pub."], ["The Mill is a pub near the river."]]
    assert e2e.score(["", ""], references, metrics=["METEOR"]) == {"METEOR": 0.0}


@needs_java
@pytest.mark.slow
def test_630_outputs_score_in_25_seconds():
    groups = [[f"Pub {n} is near the river {k} and it costs £{n}." for k in range(8)] for n in range(630)]
    start = time.perf_counter()
    e2e.score([group[0] for group in groups], groups)
    # Measured 15 s on two cores that others used as well; the bound leaves room for a loaded test machine.
    assert time.perf_counter() - start < 25 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "1 predictions, but 2 groups"),
        (["a", "b"], [["a"], []], "item 2: the group is empty"),
        (["a"], [[" "]], "item 1: the group is empty"),
        ([], [], "nothing to score"),
        (["a"], ["a"], "item 1: a list of texts"),
        ("a", [["a"]], "found one string"),
        ([None], [["a"]], "prediction 1: expected text"),
    ],
)
def test_input_that_cannot_be_scored_is_refused(predictions, references, message):
    with pytest.raises(ScoreInputError, match=message):
        e2e.score(predictions, references)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="choose from BLEU"):
        e2e.score(["a"], [["a"]], metrics=["BLEU", "bleurt"])


def test_without_java_all_but_meteor_are_scored(monkeypatch):
    monkeypatch.setattr(java, "available", lambda: False)
    texts = ["The Eagle is a family-friendly pub (cheap).", "It isn't near Café Rouge; it costs £20."]
    scores = e2e.score(texts, [[text, "Something else."] for text in texts], metrics=WITHOUT_METEOR)
    assert scores["BLEU"] == pytest.approx(1.0)
    assert scores["ROUGE_L"] == pytest.approx(1.0)
    assert scores["CIDEr"] > 0
    with pytest.raises(java.JavaError, match="default-jre-headless"):
        e2e.score(texts, [[text] for text in texts], metrics=["METEOR"])


@needs_java
def test_tokens_without_java_are_those_of_the_stanford_tokenizer():
    texts = [
        "The Vaults pub near Café Adriatic has a 5 star rating.  Prices start at £30.",
        "It's a kid-friendly place - isn't it? They'll say: 'yes', £20-25!",
        'It has "good" food (cheap), see the menu...',
        "a low- cost pub; it cannot be over €30.",
    ]
    texts = [" ".join(text.split()) for text in texts]
    plain = [coco._without_punctuation(line) for line in coco.ptb_tokenize_without_java(texts)]
    assert plain == [coco._without_punctuation(line) for line in java.ptb_tokenize(texts)]


@needs_java
def test_empty_lines_keep_their_place_in_the_tokenizer():
    assert [line.strip() for line in java.ptb_tokenize(["", "a pub.", "", ""])] == ["", "a pub .", "", ""]


def test_the_evaluate_module_loads_offline_and_scores():
    import evaluate

    folder = Path(e2e.__file__).parent / "evaluate_modules" / "e2e_nlg"
    module = evaluate.load(str(folder))
    scores = module.compute(predictions=["a b c d"], references=[["a b c d", "e"]], metrics=["BLEU", "NIST"])
    assert scores == e2e.score(["a b c d"], [["a b c d", "e"]], metrics=["BLEU", "NIST"])
