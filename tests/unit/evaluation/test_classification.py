"""Encoding of text pairs, padded prediction, and the choice of an epoch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from dual_lora import methods, models
from dual_lora.config.compose import compose
from dual_lora.evaluation import classification
from dual_lora.evaluation.classification import Collator
from dual_lora.evaluation.epoch_scores import EpochScores, Part
from dual_lora.tasks import glue
from dual_lora.tasks.glue.specs import SPECS

ENCODERS = ("tiny_roberta", "tiny_deberta")


def task_of(name):
    return glue.Glue(SPECS[name], "sample", glue.SAMPLE / SPECS[name].folder)


def cell(model, name, method="dual_lora", seed=0):
    """Task, tokenizer and adapted model of a cell, as a run makes them."""
    (config,) = compose(
        [f"model={model}", f"task=glue/{name}", f"method={method}", "data.source=sample", f"seed={seed}"]
    )
    task = glue.build(config)
    loaded = models.load(config.model, task.head, dtype="float32", seed=seed)
    adapted = methods.apply(loaded.model, config.method, model_config=config.model, head=task.head, seed=seed)
    return SimpleNamespace(config=config, task=task, tokenizer=loaded.tokenizer, model=adapted)


@pytest.fixture(scope="module")
def rte():
    return cell("tiny_roberta", "rte")


def encoded(run, split="test", max_length=128):
    examples = run.task.examples(split)
    return examples, classification.encode(run.task, examples, run.tokenizer, max_length)[0]


def test_two_texts_are_encoded_as_the_tokenizer_encodes_a_pair(rte):
    examples, rows = encoded(rte)
    first = rte.tokenizer(examples[0].fields["sentence1"], examples[0].fields["sentence2"])
    assert rows[0]["input_ids"] == first["input_ids"]
    assert rows[0]["length"] == len(first["input_ids"])
    assert [row["labels"] for row in rows] == [rte.task.target(example) for example in examples]


def test_over_long_examples_are_cut_and_counted(rte):
    examples = rte.task.examples("test")
    lengths = [len(row["input_ids"]) for row in encoded(rte)[1]]
    limit = sorted(lengths)[len(lengths) // 2]
    rows, counts = classification.encode(rte.task, examples, rte.tokenizer, limit)
    assert counts == {"examples": len(examples), "truncated": sum(length > limit for length in lengths)}
    assert counts["truncated"] > 0
    assert max(len(row["input_ids"]) for row in rows) == limit
    columns = [list(column) for column in zip(*(rte.task.texts(example) for example in examples), strict=True)]
    whole = rte.tokenizer(*columns, truncation=True, max_length=limit)
    for name in whole:
        assert [row[name] for row in rows] == whole[name], "cutting the long ones alone changes nothing"
    with pytest.raises(ValueError, match="max_length_tokens=4"):
        classification.encode(rte.task, examples, rte.tokenizer, 4)


def test_a_batch_is_as_wide_as_its_longest_row_rounded_up_to_8(rte):
    rows = sorted(encoded(rte)[1], key=lambda row: row["length"])
    batch = Collator(rte.tokenizer)(rows[:3])
    assert batch["input_ids"].shape == (3, -(-rows[2]["length"] // 8) * 8)
    assert batch["attention_mask"].sum(dim=1).tolist() == [row["length"] for row in rows[:3]]


def test_labels_are_classes_or_float_numbers(rte):
    assert Collator(rte.tokenizer)(encoded(rte)[1])["labels"].dtype == torch.long
    stsb = SimpleNamespace(task=task_of("stsb"), tokenizer=rte.tokenizer)
    assert Collator(rte.tokenizer)(encoded(stsb)[1])["labels"].dtype == torch.float32


@pytest.mark.parametrize("model", ENCODERS)
def test_padding_and_batch_size_do_not_change_a_prediction(model):
    run = cell(model, "rte")
    _, rows = encoded(run)
    alone = classification.predict(run.model, Collator(run.tokenizer), rows, batch_size=1)
    together = classification.predict(run.model, Collator(run.tokenizer), rows, batch_size=len(rows))
    assert alone.shape == (len(rows), 2)
    np.testing.assert_allclose(alone, together, atol=2e-5)
    assert np.ptp(alone[:, 0]) > 1e-3  # the texts are told apart, so a wrong order would show


def test_prediction_leaves_the_training_mode(rte):
    _, rows = encoded(rte)
    rte.model.train()
    classification.predict(rte.model, Collator(rte.tokenizer), rows, 7)
    assert rte.model.training


@pytest.mark.parametrize("model", ENCODERS)
def test_a_merged_classifier_predicts_what_the_unmerged_one_does(model):
    run = cell(model, "mnli")
    _, rows = encoded(run)
    before = classification.predict(run.model, Collator(run.tokenizer), rows)
    with run.model.disable_adapter():
        base = classification.predict(run.model, Collator(run.tokenizer), rows)
    assert np.abs(base - before).max() > 1e-3  # the adapter does something
    merged = run.model.merge_and_unload()
    np.testing.assert_allclose(classification.predict(merged, Collator(run.tokenizer), rows), before, atol=1e-4)


def test_readings_are_label_words_numbers_or_nothing():
    logits = np.array([[0.1, 2.0], [3.0, 1.0], [np.nan, 1.0]])
    assert classification.readings(logits, ("entailment", "not_entailment")) == ["not_entailment", "entailment", None]
    assert classification.readings(np.array([[4.5], [np.inf]]), ()) == [4.5, None]
    with pytest.raises(ValueError, match="2 columns but there are 3 labels"):
        classification.readings(logits, ("a", "b", "c"))


def alternating():
    """Every encoder with every task; in the short tests the encoders take turns."""
    for number, name in enumerate(sorted(SPECS)):
        for place, model in enumerate(ENCODERS):
            yield pytest.param(model, name, marks=[] if number % len(ENCODERS) == place else [pytest.mark.slow])


@pytest.mark.parametrize(("model", "name"), alternating())
def test_every_model_family_trains_two_steps_on_every_task(model, name, tmp_path):
    run = cell(model, name)
    examples, rows = encoded(run)
    head_before = {key: value.clone() for key, value in run.model.named_parameters() if "classifier" in key}
    part = {"dev": Part(examples, rows)}
    epochs = EpochScores(tmp_path / "epochs", run.task, part, Collator(run.tokenizer))
    epochs.forget_after(0)
    trainer = Trainer(
        model=run.model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            use_cpu=True,
            report_to=[],
            remove_unused_columns=False,
            train_sampling_strategy="group_by_length",
            length_column_name="length",
            label_names=["labels"],
            disable_tqdm=True,
        ),
        data_collator=Collator(run.tokenizer),
        train_dataset=encoded(run, "train")[1],
        eval_dataset=rows,
        callbacks=[epochs],
    )
    assert np.isfinite(trainer.train().training_loss)
    assert any(
        not torch.equal(value, head_before[key]) for key, value in run.model.named_parameters() if key in head_before
    )
    chosen = epochs.chosen()
    assert chosen["last"].step == 2
    now = classification.predict(run.model, Collator(run.tokenizer), rows)
    np.testing.assert_allclose(chosen["last"].logits["dev"], now, atol=1e-6)
    run.task.score(classification.readings(now, run.task.labels), examples)


class FixedScores:
    """A task whose selection scores are given: one number per part and epoch."""

    labels = ("0", "1")

    def __init__(self, scores):
        self._scores = [value for epoch in scores for value in epoch]

    def selection_score(self, readings, examples):
        return self._scores.pop(0)


def followed(tmp_path, rte, scores, **options):
    _, rows = encoded(rte)
    parts = {"dev": Part(range(3), rows[:3]), "heldout": Part(range(2), rows[3:5])}
    epochs = EpochScores(tmp_path / "epochs", FixedScores(scores), parts, Collator(rte.tokenizer), **options)
    epochs.forget_after(0)
    for step in range(10, 10 * len(scores) + 1, 10):
        epochs.measure(rte.model, step)
    return epochs


def test_each_way_chooses_its_own_epoch(tmp_path, rte):
    chosen = followed(tmp_path, rte, [(0.1, 0.9), (0.8, 0.2), (0.5, 0.3)]).chosen()
    assert {name: epoch.step for name, epoch in chosen.items()} == {"last": 30, "best_dev": 20, "best_heldout": 10}
    assert chosen["best_dev"].logits["dev"].shape == (3, 2)
    assert chosen["best_heldout"].scores == {"dev": 0.1, "heldout": 0.9}


def test_the_first_of_equal_epochs_wins_and_an_undefined_score_is_lowest(tmp_path, rte):
    chosen = followed(tmp_path, rte, [(None, 0.2), (-0.5, 0.2), (-0.5, None)]).chosen()
    assert (chosen["best_dev"].step, chosen["best_heldout"].step) == (20, 10)


def test_a_resumed_run_chooses_from_what_was_measured_before(tmp_path, rte):
    followed(tmp_path, rte, [(0.1, 0.1), (0.9, 0.9), (0.2, 0.2)])
    _, rows = encoded(rte)
    parts = {"dev": Part(range(3), rows[:3]), "heldout": Part(range(2), rows[3:5])}
    again = EpochScores(tmp_path / "epochs", FixedScores([(0.3, 0.95)]), parts, Collator(rte.tokenizer))
    again.forget_after(20)
    again.measure(rte.model, 30)
    assert {name: epoch.step for name, epoch in again.chosen().items()} == {
        "last": 30,
        "best_dev": 20,
        "best_heldout": 30,
    }
    assert again.curves() == {
        "dev_score": [[10, 0.1], [20, 0.9], [30, 0.3]],
        "heldout_score": [[10, 0.1], [20, 0.9], [30, 0.95]],
    }


def test_weights_of_the_wanted_checkpoint_are_kept(tmp_path, rte):
    from safetensors.torch import load_file

    file, calls = tmp_path / "selected" / "best_dev.safetensors", []

    def weights_of(model):
        calls.append(model)
        return {"call": torch.tensor([len(calls)])}

    scores = [(0.1, 0.9), (0.8, 0.2), (0.5, 0.3)]
    followed(tmp_path, rte, scores, keep_weights={"best_dev": file}, weights_of=weights_of)
    assert len(calls) == 2
    assert load_file(file)["call"].item() == 2


def test_nothing_measured_is_an_error(tmp_path, rte):
    with pytest.raises(ValueError, match="no epoch was measured"):
        followed(tmp_path, rte, []).chosen()
    with pytest.raises(ValueError, match="legal are dev"):
        EpochScores(tmp_path, rte.task, {"test": Part([], [])}, Collator(rte.tokenizer))
