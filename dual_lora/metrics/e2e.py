"""The scores of the E2E NLG challenge, equal to those of its official scorer (tuetschek/e2e-metrics).

    score(["..."], [["...", "..."]]) -> {"BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"}

BLEU and NIST: `mteval.py`. METEOR, ROUGE-L and CIDEr: `coco.py`. `variant="python"` gives BLEU and NIST as the scorer's
option `-p` does. The LoRA release scores with that option, so its published NIST is to be compared with this variant.
"""

from __future__ import annotations

from collections.abc import Sequence

from dual_lora.metrics import coco, mteval, texts
from dual_lora.metrics.mteval import Variant

METRICS = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
    variant: Variant = "mteval",
) -> dict[str, float]:
    """Return corpus scores: BLEU, METEOR, ROUGE_L in 0-1, NIST and CIDEr unbounded.

    `references[i]` are the texts for `predictions[i]`. An empty prediction is scored. Raises `ScoreInputError` for
    lengths that differ or an empty group, `ValueError` for an unknown metric or (BLEU and NIST by "mteval") a group
    without a token, `JavaError` if METEOR is requested and Java does not work.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics={list(metrics)}: choose from {', '.join(METRICS)}")
    predictions, groups = texts.check(predictions, references)
    scores: dict[str, float] = {}
    if "BLEU" in metrics or "NIST" in metrics:
        scores["BLEU"], scores["NIST"] = mteval.bleu_and_nist(predictions, groups, variant)
    if {"METEOR", "ROUGE_L", "CIDEr"} & set(metrics):
        tokenized = coco.tokenize(predictions, groups)
        for metric, function in (("METEOR", coco.meteor), ("ROUGE_L", coco.rouge_l), ("CIDEr", coco.cider)):
            if metric in metrics:
                scores[metric] = function(*tokenized)
    return {metric: scores[metric] for metric in METRICS if metric in metrics}
