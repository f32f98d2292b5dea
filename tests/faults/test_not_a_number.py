"""Numbers that are NaN: never a choice, never an answer, never a checkpoint that is kept; and where they come from."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file

from dual_lora import tasks
from dual_lora.config.compose import compose
from dual_lora.evaluation import validation
from dual_lora.evaluation.causal_lm import CausalLMPipeline
from dual_lora.evaluation.evaluator import Evaluator
from dual_lora.evaluation.prediction_lines import readings
from dual_lora.launch import prepare
from dual_lora.runs import lifecycle
from tests.small_cells import CLASSIFYING, WRITING, config

NAN = math.nan


def run(results, *more: str, kind: list[str] = WRITING) -> dict:
    [prepared] = prepare([dataclasses.replace(config(results, *more, kind=kind), retry=True)])
    return lifecycle.run(prepared)


@pytest.mark.parametrize("number", [1, 2])
def test_a_validation_loss_that_is_nan_is_diverged_and_the_best_weights_stay(number, tmp_path, monkeypatch):
    """The training losses are finite: the weights broke in the last update before the validation."""
    from dual_lora.training.trainer import _Trainer

    original, calls = _Trainer.evaluate, []

    def evaluate(self, *arguments, **keywords):
        calls.append(self.state.global_step)
        if len(calls) == number:
            with torch.no_grad():
                self.trained[0].fill_(NAN)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(_Trainer, "evaluate", evaluate)
    made = run(tmp_path / "results", "protocol.validation_every_steps=2")
    assert made["status"] == "diverged"
    assert made["message"] == f"the validation loss after step {2 * number} is nan; try a lower recipe.learning_rate"
    kept = list(tmp_path.glob("results/runs/*/selected/best_loss.*"))
    assert len(kept) == 2 * (number - 1), "of a NaN nothing is kept"
    for path in kept:
        if path.suffix == ".safetensors":
            assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())


def test_a_classifier_whose_validation_is_nan_is_diverged_too(tmp_path, monkeypatch):
    from dual_lora.evaluation import epoch_scores
    from dual_lora.training.loss import Objective

    monkeypatch.setattr(epoch_scores.EpochScores, "measure", lambda *_: pytest.fail("its epoch would be scored"))
    original = Objective.__call__

    def broken(self, model, batch, items):
        loss, outputs = original(self, model, batch, items)
        return (loss if items is not None else loss * NAN), outputs

    monkeypatch.setattr(Objective, "__call__", broken)
    made = run(tmp_path / "results", kind=CLASSIFYING)
    assert made["status"] == "diverged"
    assert "validation loss after step" in made["message"]


def test_an_untrained_model_whose_loss_is_nan_is_no_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "losses", lambda *_, **__: ({"loss": NAN, "full_sequence_loss": 1.0}, []))
    made = run(tmp_path / "results", "method=none")
    assert made["status"] == "diverged"
    assert made["message"].startswith("the validation loss of checkpoint 'base' is nan")


# Candidate log-likelihoods, and which candidate is chosen: None is unreadable.
RANKED = [
    ([NAN, NAN], None),
    ([NAN, -3.0], None),
    ([-3.0, NAN], None),
    ([-math.inf, -math.inf], None),
    ([-math.inf, -3.0], 1),
    ([-2.0, -3.0], 0),
    ([-3.0, -2.0], 1),
]


@pytest.fixture(scope="module")
def commonsense():
    [cell] = compose(["model=tiny_llama", "task=commonsense", "protocol=strict", "data.source=sample"])
    return cell, tasks.load(cell)


@pytest.mark.parametrize("scoring", ["likelihood", "cloze"])
def test_a_ranking_with_nan_is_unreadable_and_never_an_answer(scoring, commonsense):
    _, task = commonsense
    items = [item for item in task.examples("test") if len(task.ranking(item, scoring)[1]) == 2][:1] * len(RANKED)
    found = readings(task, [row for row, _ in RANKED], items, scoring)
    labels = [f"{items[0].references[0][:-1]}{place + 1}" for place in range(2)]
    if items[0].subset == "boolq":
        labels = ["true", "false"]
    assert found == [None if chosen is None else labels[chosen] for _, chosen in RANKED]
    for score in task.score(found, items, scoring):
        assert score.unreadable == 4
        right = sum(chosen is not None and labels[chosen] == items[0].references[0] for _, chosen in RANKED)
        assert score.metrics["accuracy"] == pytest.approx(right / len(RANKED))


def test_a_model_of_nan_answers_no_ranked_question(commonsense, tmp_path):
    from dual_lora import models
    from dual_lora.tasks.base import Head

    cell, _ = commonsense
    cell = dataclasses.replace(cell, task=dataclasses.replace(cell.task, scorings=("likelihood",)))
    task = tasks.load(cell)
    loaded = models.load(cell.model, Head("causal_lm"), dtype="float32", seed=0)
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.fill_(NAN)
    items = [item for item in task.examples("test") if item.subset == "boolq"][:4]
    found = Evaluator(task, loaded.tokenizer, cell, tmp_path).measure(
        loaded.model, items, split="test", checkpoint="base"
    )
    assert [(entry["unreadable"], entry["metrics"]["accuracy"]) for entry in found] == [(4, 0.0), (4, 0.0)]


def test_a_kept_line_that_lacks_a_candidate_is_computed_again(commonsense, tmp_path):
    """It chose the first candidate, or ended every retry in zip()'s error."""
    from dual_lora import models
    from dual_lora.tasks.base import Head

    cell, _ = commonsense
    cell = dataclasses.replace(cell, task=dataclasses.replace(cell.task, scorings=("likelihood",)))
    task = tasks.load(cell)
    loaded = models.load(cell.model, Head("causal_lm"), dtype="float32", seed=0)
    items = [item for item in task.examples("test") if item.subset == "boolq"][:4]

    def measured() -> tuple[list[dict[str, object]], int]:
        evaluator = Evaluator(task, loaded.tokenizer, cell, tmp_path)
        return evaluator.measure(loaded.model, items, split="test", checkpoint="base"), evaluator.known

    first, _ = measured()
    path = tmp_path / "base.test.likelihood.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(['{"index": 0, "value": [-1.0]}', *lines[1:]]) + "\n")
    assert measured() == (first, 3)
    assert path.read_text().splitlines() == lines


# Prompts longer than the published cut-off, at which text is cut: rows in which no part of an answer is left.
CUT = ["model=tiny_gpt2", "task=e2e", "method=lora", "protocol=paper", "task.metrics=[BLEU]", "protocol.also_report=[]"]
CUT += ["profile.test_items=0", "profile.validation_examples=12"]


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    """In a batch of its own such a row's loss would be 0 / 0; among others it would not show."""
    losses = {}
    for batch in (1, 8):
        made = run(tmp_path / str(batch), "recipe.max_length_tokens=40", f"launch.eval_batch={batch}", kind=CUT)
        assert made["status"] == "finished"
        losses[batch] = [loss for _, loss in made["curves"]["validation_loss"]]
        assert "training: 24 of 24 examples over the cut-off (16 left out, 8 cut)" in made["scores"]["notes"]
    assert losses[1] == pytest.approx(losses[8], rel=1e-6)
    assert all(map(math.isfinite, losses[1]))


@pytest.mark.parametrize("what", ["training", "validation"])
def test_a_set_without_labels_is_refused_before_training_with_the_cut_off_that_would_do(what, tmp_path, monkeypatch):
    monkeypatch.setattr("dual_lora.runs.work.train", lambda *_, **__: pytest.fail("it trained"))
    original = CausalLMPipeline.rows

    def rows(self, examples, name):
        self.config = config(tmp_path, f"recipe.max_length_tokens={8 if name == what else 512}", kind=CUT)
        return original(self, examples, name)

    monkeypatch.setattr(CausalLMPipeline, "rows", rows)
    made = run(tmp_path / "results", kind=CUT)
    assert made["status"] == "failed"
    assert "the cut-off of 8 tokens leaves no part of an answer; one example needs" in made["message"]
