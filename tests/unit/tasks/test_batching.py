"""Batches are those of transformers' collators, token for token."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import DataCollatorForSeq2Seq

from dual_lora.evaluation import causal_lm, classification
from dual_lora.tasks.batching import padded
from dual_lora.tasks.encoding import IGNORED
from tests.unit.tiny_text_model import build_tokenizer


def padding_tokenizer(side: str = "right") -> Any:
    tokenizer = build_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, side
    return tokenizer


def rows_of(tokenizer: Any, count: int, longest: int, seed: int) -> list[dict[str, Any]]:
    """Return random texts of 0 to `longest` tokens, the first of them of that length."""
    draw = random.Random(seed)
    lengths = [longest, *(draw.randint(0, longest) for _ in range(count - 1))]
    ids = [[draw.randrange(len(tokenizer)) for _ in range(length)] for length in lengths]
    labels = [[token if draw.random() < 0.5 else IGNORED for token in row] for row in ids]
    return [
        {"input_ids": row, "attention_mask": [1] * len(row), "labels": label}
        for row, label in zip(ids, labels, strict=True)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("longest", [1, 7, 8, 45, 130])
def test_language_models_batches_are_those_of_transformers(side: str, longest: int) -> None:
    tokenizer = padding_tokenizer(side)
    rows = rows_of(tokenizer, 6, longest, longest)
    expected = DataCollatorForSeq2Seq(tokenizer, padding=True, pad_to_multiple_of=8, label_pad_token_id=IGNORED)(rows)
    found = causal_lm.Collator(tokenizer)(rows)
    assert found.keys() == {*expected, "shift_labels"}
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == torch.int64
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("labels", [[0, 1, 1, 0, 1, 0], [0.5, 4.75, 0.0, 5.0, 2.0, 1.0]], ids=["classes", "numbers"])
@pytest.mark.parametrize("longest", [1, 8, 45])
def test_a_classifiers_batches_are_those_of_transformers(longest: int, labels: list[Any]) -> None:
    tokenizer = padding_tokenizer()
    encoded = [{**row, "labels": label} for row, label in zip(rows_of(tokenizer, 6, longest, 3), labels, strict=True)]
    for row in encoded:
        row["token_type_ids"] = [token % 2 for token in row["input_ids"]]
    expected = tokenizer.pad(encoded, pad_to_multiple_of=8, return_tensors="pt")
    found = classification.Collator(tokenizer)([{**row, "length": len(row["input_ids"])} for row in encoded])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has 3 input_ids, and the batch room for 2"):
        padded([{"input_ids": [1]}, {"input_ids": [1, 2, 3]}], 2, {"input_ids": 0})
