"""The WebNLG and DART scores as a local `evaluate` module; it needs no network:

evaluate.load("dual_lora/metrics/evaluate_modules/data_to_text").compute(predictions=["..."], references=[["..."]])
"""

import datasets
import evaluate

from dual_lora.metrics import nlg

_DESCRIPTION = "BLEU, METEOR and TER as the LoRA release takes them from WebNLG's GenerationEval."
_CITATION = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models; Castro Ferreira et al. 2020, WebNLG+."


class DataToText(evaluate.Metric):
    """`compute(..., metrics=[...], form="lora" | "raw")` as `dual_lora.metrics.nlg.score`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description="predictions: texts; references: for each prediction a list of texts.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions, references, metrics=nlg.METRICS, form="lora"):
        return nlg.score(predictions, references, metrics=metrics, form=form)
