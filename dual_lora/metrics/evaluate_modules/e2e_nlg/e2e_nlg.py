"""The E2E scores as a local `evaluate` module; it needs no network:

evaluate.load("dual_lora/metrics/evaluate_modules/e2e_nlg").compute(predictions=["..."], references=[["...", "..."]])
"""

import datasets
import evaluate

from dual_lora.metrics import e2e

_DESCRIPTION = "BLEU, NIST, METEOR, ROUGE_L and CIDEr, equal to the E2E NLG challenge's official scorer."
_CITATION = "Dusek, Novikova and Rieser 2018, Findings of the E2E NLG Challenge."


class E2eNlg(evaluate.Metric):
    """`compute(..., metrics=[...], variant="mteval" | "python")` as `dual_lora.metrics.e2e.score`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description="predictions: texts; references: for each prediction a list of texts.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions, references, metrics=e2e.METRICS, variant="mteval"):
        return e2e.score(predictions, references, metrics=metrics, variant=variant)
