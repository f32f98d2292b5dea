"""BLEU, METEOR and TER of data-to-text sets (WebNLG, DART), as in GenerationEval, which the LoRA release uses.

    score(predictions, references) -> {"BLEU", "METEOR", "TER"}        # TER: lower is better

`form="lora"`: texts are lower-cased and split at every non-word character, and only the first six references count, as
the release's decoding script writes them. `form="raw"`: texts as they are, all references.

- BLEU: sacrebleu's "13a" without smoothing, which equals multi-bleu-detok.perl.
- METEOR 1.5 with `-norm`, of texts tokenized by nltk, as there, but not split into sentences first, which only changes
  the raw form (docs/protocols_nlg.md says by how much). Its Java program is the one in pycocoevalcap.
- TER: mean over items of the lowest TER against one reference (`ter.py`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Literal

import sacrebleu

from dual_lora.metrics import java, texts
from dual_lora.metrics.ter import ter, unordered_distance

Form = Literal["lora", "raw"]
METRICS = ("BLEU", "METEOR", "TER")
RELEASE_REFERENCES = 6


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
    form: Form = "lora",
) -> dict[str, float]:
    """Return corpus scores: BLEU and METEOR in 0-1, TER from 0 (may exceed 1).

    An empty prediction is scored. Raises `ScoreInputError` for lengths that differ or an empty group, `ValueError` for
    an unknown metric or form, `JavaError` if METEOR is requested and Java does not work.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics={list(metrics)}: choose from {', '.join(METRICS)}")
    if form not in ("lora", "raw"):
        raise ValueError(f"form={form!r}: legal are 'lora' and 'raw'")
    predictions, groups = texts.check(predictions, references)
    groups = [[text for text in group if text] for group in groups]
    if form == "lora":
        predictions = [release_tokens(text) for text in predictions]
        groups = [[release_tokens(text) for text in group[:RELEASE_REFERENCES]] for group in groups]
    functions = {"BLEU": _bleu, "METEOR": _meteor, "TER": _ter}
    return {metric: functions[metric](predictions, groups) for metric in METRICS if metric in metrics}


def release_tokens(text: str) -> str:
    """Return a text as `gpt2_decode.py --tokenize --lower` of the LoRA release writes it."""
    return " ".join(" ".join(re.split(r"(\W)", text.lower())).split())


def _bleu(predictions: list[str], groups: list[list[str]]) -> float:
    # A stream per reference position; a shorter group repeats its first reference, which changes no count.
    streams = [
        [group[position] if position < len(group) else group[0] for group in groups]
        for position in range(max(map(len, groups)))
    ]
    return sacrebleu.corpus_bleu(predictions, streams, smooth_method="none", tokenize="13a", force=True).score / 100


def _meteor(predictions: list[str], groups: list[list[str]]) -> float:
    return java.meteor([_words(text) for text in predictions], [[_words(text) for text in group] for group in groups])


def _ter(predictions: list[str], groups: list[list[str]]) -> float:
    return sum(map(_lowest_ter, predictions, map(tuple, groups))) / len(predictions)


@functools.lru_cache(maxsize=100_000)  # an item is scored in its subset and again among all
def _lowest_ter(prediction: str, group: tuple[str, ...]) -> float:
    words = _words(prediction).split()
    references = [_words(reference).split() for reference in group]
    bounds = [unordered_distance(words, reference) / len(reference) for reference in references]
    lowest = float("inf")
    for bound, reference in sorted(zip(bounds, references, strict=True)):
        if bound < lowest:
            lowest = min(lowest, ter(words, reference))
    return lowest


@functools.lru_cache(maxsize=100_000)
def _words(text: str) -> str:
    from nltk.tokenize import NLTKWordTokenizer  # here, as it brings scikit-learn, which only a score is to wait for

    return " ".join(NLTKWordTokenizer().tokenize(text))
