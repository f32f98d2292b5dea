"""ROUGE-L is that of rouge-score, combined as COCO does; CIDEr-D follows its definition. Random tokenized texts."""

import math
import random

import pytest
from rouge_score import rouge_scorer

from dual_lora.metrics import coco


def random_items(seed):
    """Return predictions and groups of 1 to 5 references over few words, so that much of them matches."""
    chance = random.Random(seed)

    def text(least):
        return " ".join(chance.choices("abcdefgh", k=chance.randint(least, 12)))

    groups = [[text(1) for _ in range(chance.randint(1, 5))] for _ in range(chance.randint(2, 9))]
    return [chance.choice((text(0), group[0], f"{text(1)} {group[0]}")) for group in groups], groups


@pytest.mark.parametrize("seed", range(20))
def test_rouge_l_follows_its_definition(seed):
    predictions, groups = random_items(seed)
    scorer, scores = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Words()), []
    for prediction, group in zip(predictions, groups, strict=True):
        found = [scorer.score(text, prediction)["rougeL"] for text in group]
        precision, recall = max(one.precision for one in found), max(one.recall for one in found)
        weight = 1.2**2
        scores.append((1 + weight) * precision * recall / (recall + weight * precision) if precision else 0.0)
    assert coco.rouge_l(predictions, groups) == pytest.approx(sum(scores) / len(scores))


class Words:
    """The tokenizer of texts that are tokenized."""

    def tokenize(self, text):
        return text.split()


@pytest.mark.parametrize("seed", range(20))
def test_cider_follows_its_definition(seed):
    """Vedantam et al. 2015, section 3 and 5 (CIDEr-D); two particulars are the COCO code's.

    A clipped weight is a product of tf-idf weights, and lengths are counted in bigrams.
    """
    predictions, groups = random_items(seed)
    items = []
    for prediction, group in zip(predictions, groups, strict=True):
        total = 0.0
        for n in range(1, 5):
            made = weights(prediction, n, groups)
            for reference in group:
                wanted = weights(reference, n, groups)
                shared = sum(
                    min(value, wanted.get(ngram, 0.0)) * wanted.get(ngram, 0.0) for ngram, value in made.items()
                )
                lengths = math.hypot(*made.values()) * math.hypot(*wanted.values())
                shorter = len(grams(prediction, 2)) - len(grams(reference, 2))
                total += (shared / lengths if lengths else shared) * math.exp(-(shorter**2) / (2 * 6**2))
        items.append(10 * total / 4 / len(group))
    assert coco.cider(predictions, groups) == pytest.approx(sum(items) / len(items), abs=1e-12)


def grams(text, n):
    words = text.split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def weights(text, n, groups):
    """Return n-gram => count * log(items / items with the n-gram in a reference)."""
    made = grams(text, n)
    holding = {ngram: sum(any(ngram in grams(text, n) for text in group) for group in groups) for ngram in set(made)}
    return {ngram: made.count(ngram) * math.log(len(groups) / max(1, holding[ngram])) for ngram in holding}
