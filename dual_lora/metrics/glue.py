"""The scores of the nine GLUE tasks, on scikit-learn and scipy; no network, no torch.

`score("mrpc", predictions, labels)` gives the metrics the GLUE benchmark names (Wang et al. 2018, Table 1) under the
names of `evaluate`'s module "glue", each a fraction in [-1, 1]:

    cola                                 matthews_correlation
    stsb                                 pearson, spearmanr
    mrpc, qqp                            accuracy, f1 (of class 1: a paraphrase, a duplicate)
    sst2, qnli, rte, wnli, mnli          accuracy

An undefined value is None, never 0 and never an exception: a correlation with a constant, F1 if neither predictions nor
labels have the positive class. Matthews' coefficient of a constant prediction is 0 by definition.

Both libraries are imported where something is scored: what a run does before would wait half a second for them.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

# The order is that of the hub (nyu-mll/glue) and of published checkpoints; the words are those of the tsv files.
LABELS: dict[str, tuple[str, ...]] = {
    "cola": ("0", "1"),  # unacceptable, acceptable
    "sst2": ("0", "1"),  # negative, positive
    "mrpc": ("0", "1"),  # not equivalent, equivalent
    "qqp": ("0", "1"),  # not duplicate, duplicate
    "stsb": (),  # a number from 0 to 5
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("0", "1"),  # not entailed, entailed
}
METRICS: dict[str, tuple[str, ...]] = {  # the headline first
    **dict.fromkeys(LABELS, ("accuracy",)),
    **dict.fromkeys(("mrpc", "qqp"), ("accuracy", "f1")),
    "cola": ("matthews_correlation",),
    "stsb": ("pearson", "spearmanr"),
}
HEADLINES: dict[str, str] = {task: names[0] for task, names in METRICS.items()}
UNREADABLE = -1  # class of a prediction that is None: always wrong
SIGNIFICANCE = 0.05  # one-sided: with a larger p-value a score cannot be told from chance

Value = str | int | float | None


def score(task: str, predictions: Sequence[Value], labels: Sequence[Value]) -> dict[str, float | None]:
    """Return the metrics of a task, named as above.

    predictions, labels: one per item; class words ("entailment") or class numbers (0), for stsb numbers. A prediction
    may be None or NaN (a diverged model): a wrong class, and for stsb every metric is undefined.
    Raises `ValueError` for an unknown task or class, a missing label, no items, or unequal lengths.
    """
    task = _known(task)
    if len(predictions) != len(labels):
        raise ValueError(f"{task}: {len(predictions)} predictions but {len(labels)} labels; there must be one per item")
    if not len(labels):
        raise ValueError(f"{task}: no items to score; give at least one prediction and label")
    if task == "stsb":
        return _correlations(_numbers(predictions), _label_numbers(labels))
    predicted, true = _classes(task, predictions, "prediction"), _classes(task, labels, "label")
    if UNREADABLE in true:
        raise ValueError(f"{task}: label {true.index(UNREADABLE)} is missing; every item needs one")
    from sklearn import metrics

    if task == "cola":
        return {"matthews_correlation": float(metrics.matthews_corrcoef(true, predicted))}
    result: dict[str, float | None] = {"accuracy": float(metrics.accuracy_score(true, predicted))}
    if "f1" in METRICS[task]:
        defined = 1 in true or 1 in predicted
        positive = [value == 1 for value in predicted]
        result["f1"] = float(metrics.f1_score([value == 1 for value in true], positive)) if defined else None
    return result


def chance(task: str, labels: Sequence[Value]) -> float:
    """Return the headline metric of answering without reading: the majority class' share, or 0."""
    task = _known(task)
    if HEADLINES[task] != "accuracy":
        return 0.0
    return max(Counter(_classes(task, labels, "label")).values()) / len(labels)


def at_chance(task: str, predictions: Sequence[Value], labels: Sequence[Value]) -> bool:
    """Whether the headline metric cannot be told from chance: undefined, or not above it at the 5 % level (one-sided).

    Accuracy: exact binomial test against the majority class' share. Matthews: z = phi * sqrt(n). Pearson: its t test.
    """
    task = _known(task)
    value, items = score(task, predictions, labels)[HEADLINES[task]], len(labels)
    if value is None:
        return True
    from scipy import stats

    if task == "stsb":
        if items < 3:
            return True
        statistic = value * math.sqrt((items - 2) / max(1e-12, 1 - value**2))
        return bool(stats.t.sf(statistic, items - 2) >= SIGNIFICANCE)
    if task == "cola":
        return bool(stats.norm.sf(value * math.sqrt(items)) >= SIGNIFICANCE)
    share = chance(task, labels)
    test = stats.binomtest(round(value * items), items, share, alternative="greater")
    return bool(test.pvalue >= SIGNIFICANCE)


def _known(task: str) -> str:
    name = {"mnli_matched": "mnli", "mnli_mismatched": "mnli"}.get(task, task)
    if name not in LABELS:
        raise ValueError(f"unknown GLUE task {task!r}; legal: {', '.join(LABELS)} (as in task=glue/NAME)")
    return name


def _classes(task: str, values: Sequence[Value], what: str) -> list[int]:
    """Class numbers; None and NaN become UNREADABLE."""
    words = LABELS[task]
    result = []
    for position, value in enumerate(values):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            result.append(UNREADABLE)
        elif isinstance(value, str) and value in words:
            result.append(words.index(value))
        elif not isinstance(value, str) and value in range(len(words)):
            result.append(int(value))
        else:
            legal = f"{', '.join(words)} or 0 to {len(words) - 1}"
            raise ValueError(f"{task}: {what} {position} is {value!r}; legal: {legal}")
    return result


def _numbers(values: Sequence[Value]) -> np.ndarray:
    return np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)


def _label_numbers(values: Sequence[Value]) -> np.ndarray:
    numbers = _numbers(values)
    if np.isnan(numbers).any():
        raise ValueError(f"stsb: label {int(np.isnan(numbers).argmax())} is missing; every item needs a number")
    return numbers


def _correlations(predicted: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    undefined = not np.isfinite(predicted).all() or any(np.ptp(values) == 0 for values in (predicted, true))
    if undefined or len(true) < 2:
        return {"pearson": None, "spearmanr": None}
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input: scipy warns and still gives the value
        values = {"pearson": stats.pearsonr(true, predicted)[0], "spearmanr": stats.spearmanr(true, predicted)[0]}
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
