"""The objective is what its definition says, token by token, whatever the class of the model is called."""

from __future__ import annotations

import math

import pytest
import torch

from dual_lora.config import ConfigError
from dual_lora.models.gpt2 import split_attention
from dual_lora.runs.resolve import check_smoothing
from dual_lora.tasks.base import Head
from dual_lora.training.loss import mean_loss, next_token_labels, row_loss, token_loss
from tests.unit.tiny_text_model import SENTENCES, build_gpt2, build_llama, build_tokenizer


def _named_otherwise(model):
    model.__class__ = type("Anything", (type(model),), {})
    return model


MODELS = {
    "llama": build_llama,
    "gpt2": build_gpt2,
    "split gpt2": lambda tokenizer: split_attention(build_gpt2(tokenizer)),
    "another name": lambda tokenizer: _named_otherwise(build_llama(tokenizer)),
}


def _batch(tokenizer):
    """Three right-padded rows: a prompt without loss, no loss at all, loss from the first token on."""
    batch = dict(tokenizer(SENTENCES[:3], padding=True, return_tensors="pt"))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[0, :5] = -100
    labels[1] = -100
    return {**batch, "labels": labels, "shift_labels": next_token_labels(labels)}


def _by_hand(model, batch, smoothing, items):
    """One row at a time, without padding; each token's loss from the definition of label smoothing, in float64."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        logs = model(input_ids=ids[None, :length]).logits[0].double().log_softmax(-1)
        for place in range(1, length):
            if labels[place] != -100:
                wanted = torch.full((logs.shape[1],), smoothing / logs.shape[1], dtype=torch.float64)
                wanted[ids[place]] += 1 - smoothing
                total, count = total - (wanted * logs[place - 1]).sum(), count + 1
    return total / (items or count)


def _gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("items", [None, 31])
def test_loss_and_gradients_are_those_of_the_definition(name, smoothing, items):
    tokenizer = build_tokenizer(pad_token="<pad>")
    model, batch = MODELS[name](tokenizer), _batch(tokenizer)
    by_hand = _by_hand(model, batch, smoothing, items)
    expected = _gradients(model, by_hand)
    loss, _ = token_loss(model, batch, model.get_output_embeddings(), items=items, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-6)
    for ours, theirs in zip(_gradients(model, loss), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_micro_batches_with_the_items_of_a_step_add_up_to_its_mean():
    tokenizer = build_tokenizer(pad_token="<pad>")
    model, batch = build_llama(tokenizer), _batch(tokenizer)
    layer = model.get_output_embeddings()
    items = int((batch["shift_labels"] != -100).sum())
    whole, _ = token_loss(model, batch, layer)
    parts = [
        token_loss(model, {name: value[rows] for name, value in batch.items()}, layer, items=items)[0]
        for rows in (slice(0, 1), slice(1, 3))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_only_kept_positions_get_logits_and_only_during_the_call():
    tokenizer = build_tokenizer(pad_token="<pad>")
    model, batch = build_llama(tokenizer), _batch(tokenizer)
    wanted = int((batch["labels"][:, 1:] != -100).sum())
    _, outputs = token_loss(model, batch, model.get_output_embeddings())
    assert outputs.logits.shape[:2] == (1, wanted)
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["labels"].shape


def test_hidden_states_of_another_shape_are_refused():
    tokenizer = build_tokenizer(pad_token="<pad>")
    model, batch = build_llama(tokenizer), _batch(tokenizer)
    with pytest.raises(RuntimeError, match="positions"):
        token_loss(model, {**batch, "input_ids": batch["input_ids"][:, :4]}, model.get_output_embeddings())


def test_labels_are_moved_to_the_position_that_predicts_them():
    labels = torch.tensor([[-100, 5, 6], [7, -100, 8]])
    assert next_token_labels(labels).tolist() == [[5, 6, -100], [-100, 8, -100]]


def _classifier(logits):
    return lambda **inputs: type("Output", (), {"logits": logits})


def test_a_classifier_gets_the_smoothed_cross_entropy_of_its_rows():
    logits, labels, smoothing = [[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]], [0, 2], 0.2
    by_hand = 0.0
    for row, label in zip(logits, labels, strict=True):
        whole = math.log(sum(map(math.exp, row)))
        by_hand -= sum((smoothing / 3 + (0.8 if k == label else 0)) * (row[k] - whole) for k in range(3)) / 4
    loss, _ = row_loss(
        _classifier(torch.tensor(logits)), {"labels": torch.tensor(labels)}, items=4, label_smoothing=smoothing
    )
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_a_regression_gets_the_mean_squared_error():
    logits = torch.tensor([[1.5], [3.0]], dtype=torch.bfloat16)
    loss, _ = row_loss(_classifier(logits), {"labels": torch.tensor([1.0, 5.0])}, regression=True)
    assert loss.item() == pytest.approx((0.5**2 + 2.0**2) / 2)
    assert loss.dtype == torch.float32


def test_a_low_precision_loss_is_computed_in_float32():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([1, -100, 3, 8])
    assert mean_loss(logits, labels) == mean_loss(logits.float(), labels)


def test_a_regression_has_nothing_to_smooth():
    with pytest.raises(ConfigError, match="regression"):
        check_smoothing(Head("classification", 1, regression=True), 0.1)
    check_smoothing(Head("classification", 1, regression=True), 0.0)
