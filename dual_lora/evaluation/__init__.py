"""Scoring a model by what it generates, ranks and classifies.

`generation` gives replies, `ranking` the likelihoods of offered answers, `classification` logits, `validation` losses.
`evaluator` runs them over a task's items and keeps every prediction, `gate` looks for faults before hours of it,
`epoch_scores` follows a classifier's epochs, `rescoring` scores kept predictions again, `samples` shows some.

`build_pipeline(task, ...)` gives what a run does with them, for a language model or a classifier.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dual_lora.config import RunConfig
from dual_lora.tasks.base import ClassificationTask, Task

if TYPE_CHECKING:
    from dual_lora.evaluation.pipeline import Pipeline


def build_pipeline(task: Task, tokenizer: Any, config: RunConfig, folder: Path, dtype: str) -> Pipeline:
    """Return the pipeline for the task's type."""
    if isinstance(task, ClassificationTask):
        from dual_lora.evaluation.classifier import ClassificationPipeline

        return ClassificationPipeline(task, tokenizer, config, folder, dtype)
    from dual_lora.evaluation.causal_lm import CausalLMPipeline

    return CausalLMPipeline(task, tokenizer, config, folder, dtype)
