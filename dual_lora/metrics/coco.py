"""ROUGE-L, CIDEr and METEOR of the COCO caption evaluation (pycocoevalcap), as in the E2E scorer.

    tokenize(predictions, references) -> (predictions, references)      # PTB tokens without punctuation, lower-cased
    rouge_l(...), cider(...), meteor(...) -> float                      # of tokenized texts

The tokenizer is the Stanford one (Java). Without Java, which is only allowed if METEOR is left out, nltk's replaces it,
with corrections for the differences in E2E texts. 99.9 % of the E2E references then have the same tokens (42 of 49,777
differ), and the record's notes say so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

from dual_lora.metrics import java

Groups = Sequence[Sequence[str]]
# What the Stanford tokenizer does and nltk's does not: currency signs (it prints a pound as "#"), periods inside a
# line, and a dash or an apostrophe at the edge of a word.
_LIKE_STANFORD = (
    (re.compile(r"£"), " # "),
    (re.compile(r"€"), " $ "),
    (re.compile(r"(?<=[^\s.])\.(?=\s)"), " ."),
    (re.compile(r"(?<=\s)-(?=\w)|^-(?=\w)"), "- "),
    (re.compile(r"(?<=\w)-(?=\s|$)"), " -"),
    (re.compile(r"\.{2,}"), " ... "),
    (re.compile(r"(?<=\s)'(?=t\b)"), "' "),
)


def tokenize(predictions: Sequence[str], references: Groups) -> tuple[list[str], list[list[str]]]:
    """Return both as tokens joined by blanks, one-line texts in and out."""
    flat = [reference for group in references for reference in group]
    ptb = java.ptb_tokenize if java.available() else ptb_tokenize_without_java
    # Two calls, as in the official scorer: the tokenizer reads beyond the end of a line.
    tokenized = iter([_without_punctuation(line) for line in ptb(flat)])
    groups = [[next(tokenized) for _ in group] for group in references]
    return [_without_punctuation(line) for line in ptb(predictions)], groups


def _without_punctuation(line: str) -> str:
    return " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATIONS)


def ptb_tokenize_without_java(texts: Sequence[str]) -> list[str]:
    """Return what `java.ptb_tokenize` returns, as nearly as nltk's Treebank tokenizer and a few rules can."""
    from nltk.tokenize import NLTKWordTokenizer  # here, as it brings scikit-learn, and with Java nothing needs it

    tokenizer = NLTKWordTokenizer()
    lines = []
    for text in texts:
        for pattern, replacement in _LIKE_STANFORD:
            text = pattern.sub(replacement, text)
        lines.append(" ".join(tokenizer.tokenize(text, convert_parentheses=True)).lower())
    return lines


def rouge_l(predictions: Sequence[str], references: Groups) -> float:
    """Return the mean over items of ROUGE-L (beta 1.2; best precision and best recall of the group), 0-1."""
    return float(Rouge().compute_score(*_by_item(predictions, references))[0])


def cider(predictions: Sequence[str], references: Groups) -> float:
    """Return CIDEr-D (n 1-4, sigma 6), unbounded. Its weights come from these references; 0 for a single item."""
    return float(Cider().compute_score(*_by_item(predictions, references))[0])


def meteor(predictions: Sequence[str], references: Groups) -> float:
    """Return METEOR 1.5, 0-1. Raises `JavaError` without Java."""
    return java.meteor(predictions, references)


def _by_item(predictions: Sequence[str], references: Groups) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return dict(enumerate(map(list, references))), {item: [text] for item, text in enumerate(predictions)}
