"""Validation losses are plain likelihoods: the same whatever the batches, unsmoothed, over answers and whole texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DataCollatorForSeq2Seq

from dual_lora.evaluation.validation import losses
from tests.unit.tiny_text_model import SENTENCES, build_llama, build_tokenizer


@pytest.fixture(scope="module")
def setting():
    tokenizer = build_tokenizer(pad_token="<pad>")
    model = build_llama(tokenizer)
    rows = []
    for number, text in enumerate(SENTENCES):
        ids = tokenizer(text)["input_ids"]
        prompt = 3 + number
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * prompt + ids[prompt:]})
    return model, rows, DataCollatorForSeq2Seq(tokenizer, padding=True)


def test_they_are_the_mean_negative_log_likelihoods_of_the_texts_computed_one_by_one(setting):
    model, rows, collator = setting
    answer, whole = [], []
    for row in rows:
        with torch.no_grad():
            logs = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for place in range(1, len(row["input_ids"])):
            value = -logs[place - 1, row["input_ids"][place]].item()
            whole.append(value)
            answer += [value] if row["labels"][place] != -100 else []
    found, each = losses(model, rows, collator, batch_tokens=200)
    assert found["loss"] == pytest.approx(sum(answer) / len(answer), rel=1e-5)
    assert found["full_sequence_loss"] == pytest.approx(sum(whole) / len(whole), rel=1e-5)
    assert len(answer) < len(whole)
    assert [tokens for _, tokens in each] == [sum(label != -100 for label in row["labels"][1:]) for row in rows]
    ends = np.cumsum([tokens for _, tokens in each])
    alone = [sum(part) for part in np.split(np.array(answer), ends[:-1])]
    assert [nats for nats, _ in each] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
def test_the_size_of_the_batches_changes_nothing(setting, batch_tokens):
    model, rows, collator = setting
    reference, _ = losses(model, rows, collator, batch_tokens=128)
    assert losses(model, rows, collator, batch_tokens=batch_tokens)[0] == pytest.approx(reference, rel=1e-5)


def test_the_model_comes_back_as_it_was(setting):
    model, rows, collator = setting
    model.train()
    losses(model, rows, collator, batch_tokens=128)
    assert model.training
    model.eval()
