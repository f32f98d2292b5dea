"""GLUE as a local `evaluate` module; it needs no network:

evaluate.load("dual_lora/metrics/evaluate_modules/glue", "mrpc").compute(predictions=[0, 1], references=[0, 1])
"""

import datasets
import evaluate

from dual_lora.metrics import glue

_DESCRIPTION = "The metrics of the GLUE benchmark, computed by dual_lora.metrics.glue (undefined values are None)."
_CITATION = "Wang et al. 2018, GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding."


class Glue(evaluate.Metric):
    """`config_name` is the task: cola, sst2, mrpc, stsb, qnli, rte, mnli, qqp or wnli."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in glue.LABELS:
            raise KeyError(f"name the GLUE task as second argument: one of {', '.join(glue.LABELS)}")
        kind = datasets.Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description="predictions and references: class numbers in the hub's label order; stsb: numbers.",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions, references):
        return glue.score(self.config_name, predictions, references)
