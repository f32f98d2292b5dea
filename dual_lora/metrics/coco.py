"""ROUGE-L, CIDEr and METEOR as the E2E scorer takes them from the COCO caption evaluation (pycocoevalcap).

    tokenize(predictions, references) -> (predictions, references)      # PTB tokens without punctuation, lower-cased
    rouge_l(...), cider(...), meteor(...) -> float                      # of tokenized texts

The tokenizer is the Stanford one (Java). Without Java, where METEOR is left out, `tokenize` uses nltk's tokenizer with
the differences that E2E texts show mended (currency signs, brackets, cannot, ...). On the 46,732 different references
of the E2E data both give the same tokens, but other texts can differ; the record's notes say which one was used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nltk.tokenize import NLTKWordTokenizer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

from dual_lora.metrics import java

Groups = Sequence[Sequence[str]]


def tokenize(predictions: Sequence[str], references: Groups) -> tuple[list[str], list[list[str]]]:
    """Return both as tokens joined by blanks, one-line texts in and out."""
    flat = [reference for group in references for reference in group]
    ptb = java.ptb_tokenize if java.available() else ptb_tokenize_without_java
    # Two calls, as in the official scorer: the tokenizer looks beyond the end of a line.
    tokenized = iter([_without_punctuation(line) for line in ptb(flat)])
    groups = [[next(tokenized) for _ in group] for group in references]
    return [_without_punctuation(line) for line in ptb(predictions)], groups


def _without_punctuation(line: str) -> str:
    return " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATIONS)


def ptb_tokenize_without_java(texts: Sequence[str]) -> list[str]:
    """Return what `java.ptb_tokenize` returns, as nearly as nltk's Treebank tokenizer can."""
    tokenizer = NLTKWordTokenizer()
    lines = []
    for text in texts:
        text = re.sub(r"([£€$])", r" \1 ", text)
        lines.append(" ".join(tokenizer.tokenize(text)).lower())
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
