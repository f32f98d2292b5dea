"""The batches that a plan counts are those that the pipelines and the Trainer make on a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dual_lora import models, tasks
from dual_lora.config.compose import compose
from dual_lora.config.schedule import plan_batches
from dual_lora.evaluation import build_pipeline, validation
from dual_lora.runs import phases
from dual_lora.runs.cards import CARDS
from dual_lora.runs.resolve import resolve
from dual_lora.tasks import splits
from dual_lora.tasks.lengths import planned_lengths
from dual_lora.training.arguments import training_arguments

ON_GPU: Any = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=SimpleNamespace(type="cuda"))]))


def planned(*words: str) -> dict[str, int]:
    """Return the rows of each phase but training; for validation its positions."""
    [config] = compose(["method=lora", "protocol=strict", "init_from=none", *words])
    run = resolve(config, planned=True)
    lengths = planned_lengths(config, run.task)
    found = phases.evaluations(run, phases.setup(run, CARDS["h200"]), lengths)
    return {one.phase: one.batch.positions if one.phase == "validation" else one.batch.rows for one in found}


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, int]:
    """Return the same of what is evaluated, by the pipeline itself."""
    sample = ["data.source=sample", "launch.graphs=off", "launch.device=cpu"]
    [config] = compose(["method=lora", "protocol=strict", "init_from=none", *words, *sample])
    task, batches = tasks.load(config), plan_batches(config)
    [tiny] = compose([f"model=tiny_{'llama' if task.head.kind == 'causal_lm' else 'roberta'}"])
    tokenizer = models.load(tiny.model, task.head, dtype="float32", seed=0).tokenizer
    pipeline: Any = build_pipeline(task, tokenizer, config, folder, "bfloat16")
    trained = training_arguments(config, batches, 10, 5, folder, False, None, False)
    if task.head.kind == "classification":
        return {"evaluation": pipeline.eval_batch}
    seen: dict[str, int] = {"validation in training": trained.per_device_eval_batch_size}

    def losses(*_: Any, batch_tokens: int, **__: Any) -> Any:
        seen["validation"] = batch_tokens
        return {"loss": 1.0}, []

    monkeypatch.setattr(validation, "losses", losses)
    pipeline._validate(ON_GPU, splits.select(task, config), "last")
    for scoring in task.scorings:
        phase = "generation" if scoring == "generate" else "ranking"
        seen[phase] = pipeline._evaluator._batch_size(ON_GPU, scoring)
    return seen


@pytest.mark.parametrize("eval_batch", [None, 48])
@pytest.mark.parametrize(
    ("model", "task"),
    [("smollm2", "e2e"), ("llama", "e2e"), ("llama", "commonsense"), ("minilm", "glue/cola")],
)
def test_a_plan_counts_the_batches_that_are_made(model, task, eval_batch, tmp_path, monkeypatch):
    words = [f"model={model}", f"task={task}", "launch.per_device_batch=4"]
    words += [f"launch.eval_batch={eval_batch}"] if eval_batch else []
    words += ["task.metrics=[BLEU]"] if task == "e2e" else []
    assert planned(*words) == made(tmp_path, monkeypatch, *words)


def test_a_small_models_candidates_are_many(tmp_path, monkeypatch):
    """As many as fit: with 526 tokens of the longest prompt no 2,048, and so many are only asked for."""
    words = ["model=smollm2", "task=commonsense", "profile=study", "task.target=label"]
    assert made(tmp_path, monkeypatch, *words)["ranking"] == 2048
    assert planned(*words)["ranking"] * 526 == pytest.approx(131_072, rel=0.25)
