"""The loss from the kept positions' logits is the loss from all of them, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
from tiny_text_model import SENTENCES, build_gpt2, build_llama, build_tokenizer
from transformers.trainer_pt_utils import LabelSmoother

from dual_lora.training.loss_positions import where_labels_are

LOSSES = {
    "mean": lambda model, batch: model(**batch).loss,
    "of a global batch": lambda model, batch: model(**batch, num_items_in_batch=torch.tensor(31)).loss,
    "smoothed": lambda model, batch: LabelSmoother(0.1)(
        model(**{name: value for name, value in batch.items() if name != "labels"}), batch["labels"], shift_labels=True
    ),
}


def _batch(tokenizer):
    """Three right-padded rows: a prompt without loss, no loss at all, loss from the first token on."""
    batch = dict(tokenizer(SENTENCES[:3], padding=True, return_tensors="pt"))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[0, :5] = -100
    labels[1] = -100
    return {**batch, "labels": labels}


def _gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("build", [build_llama, build_gpt2])
@pytest.mark.parametrize("kind", LOSSES)
def test_loss_and_gradients_are_those_of_all_logits(build, kind):
    tokenizer = build_tokenizer(pad_token="<pad>")
    model, batch, loss = build(tokenizer), _batch(tokenizer), LOSSES[kind]
    whole = loss(model, batch)
    expected = _gradients(model, whole)
    with where_labels_are(model.get_output_embeddings(), batch["labels"]) as labels:
        kept = loss(model, {**batch, "labels": labels})
    torch.testing.assert_close(kept, whole)
    for ours, theirs in zip(_gradients(model, kept), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_kept_positions_get_logits_and_only_inside_the_context():
    tokenizer = build_tokenizer(pad_token="<pad>")
    model, batch = build_llama(tokenizer), _batch(tokenizer)
    wanted = int((batch["labels"][:, 1:] != -100).sum())
    with where_labels_are(model.get_output_embeddings(), batch["labels"]) as labels:
        assert model(**{**batch, "labels": labels}).logits.shape[:2] == (1, wanted + 1)
        assert labels.shape == (1, wanted + 1)
    assert model(**batch).logits.shape[:2] == batch["labels"].shape


def test_the_labels_given_are_left_as_they_are():
    tokenizer = build_tokenizer(pad_token="<pad>")
    model, batch = build_llama(tokenizer), _batch(tokenizer)
    before = batch["labels"].clone()
    with where_labels_are(model.get_output_embeddings(), batch["labels"]):
        pass
    assert torch.equal(batch["labels"], before)


def test_hidden_states_of_another_shape_are_refused():
    tokenizer = build_tokenizer(pad_token="<pad>")
    model, batch = build_llama(tokenizer), _batch(tokenizer)
    with (
        where_labels_are(model.get_output_embeddings(), batch["labels"]),
        pytest.raises(RuntimeError, match="positions"),
    ):
        model(input_ids=batch["input_ids"][:, :4])
