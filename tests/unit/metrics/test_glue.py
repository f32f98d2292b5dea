"""GLUE's scores against their formulas, also where a score has no value."""

import math
import random

import pytest

from dual_lora.metrics import glue


def _counts(predictions, labels):
    pairs = list(zip(predictions, labels, strict=True))
    return [pairs.count((p, t)) for p, t in ((1, 1), (0, 0), (1, 0), (0, 1))]


def _random_classes(seed, classes=2, items=200):
    generator = random.Random(seed)
    labels = [generator.randrange(classes) for _ in range(items)]
    return [label if generator.random() < 0.7 else generator.randrange(classes) for label in labels], labels


@pytest.mark.parametrize("seed", range(3))
def test_matthews_follows_its_formula(seed):
    predictions, labels = _random_classes(seed)
    tp, tn, fp, fn = _counts(predictions, labels)
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert glue.score("cola", predictions, labels) == {"matthews_correlation": pytest.approx(expected)}


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_accuracy_and_f1_follow_their_formulas(task):
    predictions, labels = _random_classes(7)
    tp, tn, fp, fn = _counts(predictions, labels)
    expected = {"accuracy": (tp + tn) / len(labels), "f1": 2 * tp / (2 * tp + fp + fn)}
    assert glue.score(task, predictions, labels) == pytest.approx(expected)


def test_correlations_follow_their_formulas():
    true, predicted = [0.0, 1.0, 2.5, 4.0, 5.0], [0.3, 0.2, 2.0, 4.5, 3.0]
    mean_true, mean_predicted = sum(true) / 5, sum(predicted) / 5
    covariance = sum((t - mean_true) * (p - mean_predicted) for t, p in zip(true, predicted, strict=True))
    variance = sum((t - mean_true) ** 2 for t in true) * sum((p - mean_predicted) ** 2 for p in predicted)
    ranks = [1, 0, 2, 4, 3]
    differences = sum((position - rank) ** 2 for position, rank in enumerate(ranks))
    assert glue.score("stsb", predicted, true) == pytest.approx(
        {"pearson": covariance / math.sqrt(variance), "spearmanr": 1 - 6 * differences / (5 * 24)}
    )


@pytest.mark.parametrize("task", ["sst2", "qnli", "rte", "wnli", "mnli"])
def test_the_other_tasks_have_accuracy_alone(task):
    assert glue.score(task, [0, 1, 1, 0], [0, 1, 0, 0]) == {"accuracy": 0.75}


@pytest.mark.parametrize("task", glue.LABELS)
def test_metrics_are_named_as_they_are_scored(task):
    words = glue.LABELS[task] or (1.0, 2.0)
    assert tuple(glue.score(task, words, words)) == glue.METRICS[task]


def test_matthews_of_a_constant_prediction_is_zero():
    assert glue.score("cola", [1, 1, 1, 1], [0, 1, 0, 1]) == {"matthews_correlation": 0.0}


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [([2.0, 2.0, 2.0], [0, 1, 5]), ([1, 2, 3], [4, 4, 4]), ([math.nan, 1, 2], [0, 1, 2]), ([None, 1, 2], [0, 1, 2])],
)
def test_a_correlation_without_a_value_is_none(predictions, labels):
    assert glue.score("stsb", predictions, labels) == {"pearson": None, "spearmanr": None}


def test_f1_is_zero_when_nothing_is_found_and_undefined_when_there_is_nothing_to_find():
    assert glue.score("mrpc", [0, 0], [1, 0]) == {"accuracy": 0.5, "f1": 0.0}
    assert glue.score("mrpc", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": None}


def test_words_and_class_numbers_are_the_same_labels():
    assert glue.score("mnli", ["neutral", "contradiction"], [1, 0]) == {"accuracy": 0.5}
    assert glue.score("rte", [0, 1], ["entailment", "not_entailment"]) == {"accuracy": 1.0}


def test_a_missing_prediction_is_wrong():
    assert glue.score("rte", [None, 1], [0, 1]) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("task", "predictions", "labels", "part"),
    [
        ("squad", [0], [0], "unknown GLUE task 'squad'"),
        ("rte", [0, 1], [0], "2 predictions but 1 labels"),
        ("rte", [], [], "no items"),
        ("rte", [2], [0], "prediction 0 is 2; legal: entailment, not_entailment or 0 to 1"),
        ("mnli", [0], ["maybe"], "label 0 is 'maybe'"),
        ("stsb", [1.0], [None], "label 0 is missing"),
        ("cola", [1], [None], "label 0 is missing"),
    ],
)
def test_input_that_cannot_be_scored_is_refused(task, predictions, labels, part):
    with pytest.raises(ValueError, match=part):
        glue.score(task, predictions, labels)


def test_chance_is_the_majority_class_or_zero():
    assert glue.chance("rte", [0, 0, 0, 1]) == 0.75
    assert glue.chance("cola", [0, 0, 0, 1]) == 0.0
    assert glue.chance("stsb", [0, 1, 2, 3]) == 0.0


@pytest.mark.parametrize("task", ["cola", "rte", "mrpc"])
def test_a_constant_answer_is_at_chance_and_a_good_one_is_not(task):
    predictions, labels = _random_classes(1)
    assert glue.at_chance(task, [max(labels)] * len(labels), labels)
    assert not glue.at_chance(task, predictions, labels)


def test_a_correlation_is_at_chance_if_it_is_undefined_or_small():
    generator = random.Random(0)
    true = [generator.uniform(0, 5) for _ in range(100)]
    assert glue.at_chance("stsb", [3.0] * 100, true)
    assert glue.at_chance("stsb", [generator.random() for _ in true], true)
    assert not glue.at_chance("stsb", [value + generator.random() for value in true], true)


def test_the_evaluate_module_gives_the_same_scores_without_a_network():
    evaluate = pytest.importorskip("evaluate")
    predictions, labels = _random_classes(3)
    module = evaluate.load("dual_lora/metrics/evaluate_modules/glue", "mrpc")
    assert module.compute(predictions=predictions, references=labels) == glue.score("mrpc", predictions, labels)
