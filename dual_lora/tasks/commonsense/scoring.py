"""Accuracy per task, counts of faults, and whether a score can be told from guessing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dual_lora.tasks.base import Example, Reading, Score
from dual_lora.tasks.commonsense.items import parse

AVERAGE = "average"
# A score is at chance unless guessing would reach it less often than this.
SIGNIFICANCE = 0.01


def chance_level(examples: Sequence[Example]) -> float:
    """Return the accuracy without reading: the better of uniform guessing and always giving the most frequent answer.

    BoolQ's test set is 62 % true, so a model that has only learned that reaches 0.62 and not 0.5.
    """
    uniform = sum(1 / len(parse(example.fields["instruction"]).options) for example in examples) / len(examples)
    answers = [example.references[0] for example in examples]
    majority = max(answers.count(answer) for answer in set(answers)) / len(answers)
    return max(uniform, majority)


def is_at_chance(correct: int, items: int, chance: float) -> bool:
    """Whether a one-sided binomial test against `chance` leaves the score unexplained at 1 %."""
    from scipy.stats import binomtest

    return bool(binomtest(correct, items, min(chance, 1.0), alternative="greater").pvalue >= SIGNIFICANCE)


def score_subset(subset: str, examples: Sequence[Example], readings: Sequence[Reading], scoring: str) -> Score:
    """Score one task. Unreadable replies are wrong, as published.

    counts: correct; out_of_range (an answer that the item does not offer); not_exact_sentence (generate: replies that
    are anything but the taught answer, unreadable ones among them).
    """
    right = [example.references[0] for example in examples]
    fits = {"accuracy": [reading == answer for reading, answer in zip(readings, right, strict=True)]}
    correct = sum(fits["accuracy"])
    counts = {"correct": correct}
    if scoring == "generate":
        counts["out_of_range"] = sum(
            reading is not None and reading not in parse(example.fields["instruction"]).options
            for reading, example in zip(readings, examples, strict=True)
        )
        counts["not_exact_sentence"] = sum(not getattr(reading, "exact", False) for reading in readings)
    if scoring == "cloze":
        normalised = [getattr(reading, "normalised", None) for reading in readings]
        fits["accuracy_normalised"] = [reading == answer for reading, answer in zip(normalised, right, strict=True)]
    chance = chance_level(examples)
    return Score(
        subset=subset,
        scoring=scoring,
        items=len(examples),
        metrics={metric: sum(fit) / len(examples) for metric, fit in fits.items()},
        unreadable=sum(reading is None for reading in readings),
        counts=counts,
        chance=chance,
        at_chance=is_at_chance(correct, len(examples), chance),
        per_item=fits,
    )


def average(scores: Sequence[Score], scoring: str) -> Score:
    """Return the plain mean over the tasks, as published, each counted once regardless of its size.

    At chance: a one-sided z-test of the mean against the mean chance level, 1 %, with the tasks' binomial variances.
    """
    metrics = {name: sum(score.metrics[name] or 0.0 for score in scores) / len(scores) for name in scores[0].metrics}
    chances = [score.chance or 0.0 for score in scores]
    chance = sum(chances) / len(scores)
    spread = math.sqrt(sum(p * (1 - p) / score.items for p, score in zip(chances, scores, strict=True))) / len(scores)
    z_limit = 2.326  # the normal distribution's 99 % quantile
    return Score(
        subset=AVERAGE,
        scoring=scoring,
        items=sum(score.items for score in scores),
        metrics=metrics,
        unreadable=sum(score.unreadable for score in scores),
        counts={key: sum(score.counts[key] for score in scores) for key in scores[0].counts},
        chance=chance,
        at_chance=metrics["accuracy"] - chance <= z_limit * spread,
    )
