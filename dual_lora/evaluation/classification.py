"""Sentence classification and regression with an encoder: rows for training, and batched prediction.

    rows, counts = encode(task, examples, tokenizer, max_length_tokens)
    logits = predict(model, Collator(tokenizer), rows, batch_size)       # float32, (items, labels)
    task.score(readings(logits, task.labels), examples)

Padding is dynamic: each batch is as long as its longest row. Rows carry `length` for length-grouped sampling.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dual_lora.distributed import processes
from dual_lora.evaluation.passes import Passes, evaluating
from dual_lora.models import attention
from dual_lora.tasks.base import ClassificationTask, Example, Reading
from dual_lora.tasks.batching import padded
from dual_lora.tasks.padding import rounded_length
from dual_lora.training.graphs import GraphedCalls


def encode(
    task: ClassificationTask, examples: Sequence[Example], tokenizer: Any, max_length_tokens: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return one row per example, in order, and counts {"examples", "truncated"}.

    A row: `input_ids`, `attention_mask`, `token_type_ids` where the tokenizer has them, `labels` (a class number, or a
    float for regression) and `length`. Two texts are encoded as a pair; over the cut-off the longer one loses tokens
    first, as in the LoRA repository's `run_glue.py`. Raises `ValueError` for a cut-off that leaves no room for text.
    """
    if max_length_tokens < 8:
        raise ValueError(
            f"max_length_tokens={max_length_tokens}: an encoder needs at least 8 (special tokens and text)"
        )
    texts = [task.texts(example) for example in examples]
    if not texts:
        return [], {"examples": 0, "truncated": 0}
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, verbose=False)
    too_long = [place for place, ids in enumerate(encoded["input_ids"]) if len(ids) > max_length_tokens]
    if too_long:
        shortened = [[column[place] for place in too_long] for column in columns]
        cut = tokenizer(*shortened, truncation=True, max_length=max_length_tokens)
        for name, values in encoded.items():
            for place, value in zip(too_long, cut[name], strict=True):
                values[place] = value
    rows = []
    for position, example in enumerate(examples):
        row = {name: values[position] for name, values in encoded.items()}
        rows.append({**row, "labels": task.target(example), "length": len(row["input_ids"])})
    return rows, {"examples": len(rows), "truncated": len(too_long)}


class Collator:
    """Pads a batch to its longest row: long tensors (batch, tokens), labels long or float32 (batch,).

    The width is rounded up to a multiple of 8, which suits tensor cores; the added columns are masked out.
    few_shapes: round up by `tasks.padding` instead.
    """

    def __init__(self, tokenizer: Any, few_shapes: bool = False) -> None:
        self._tokenizer, self._few_shapes = tokenizer, few_shapes
        ids = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        self._fill = {**ids, "attention_mask": 0}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        multiple = rounded_length(longest) if self._few_shapes else 8
        length = -(-longest // multiple) * multiple
        # RoBERTa's position table ends at 514: rounding up must not run past what the tokenizer allows.
        if length > self._tokenizer.model_max_length:
            length = longest
        fill = {name: value for name, value in self._fill.items() if name in rows[0]}
        batch = padded(rows, length, fill, left=self._tokenizer.padding_side == "left")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else batch


def logits_of(model: torch.nn.Module, autocast: torch.dtype | None, passes: Passes) -> GraphedCalls:
    """Return what computes a batch's logits for `predict`, in one training of `model`."""
    whole = passes.few_shapes and getattr(getattr(model, "config", None), "_attn_implementation", None) == "sdpa"
    return passes.calls(lambda batch, _: _logits(model, batch, autocast, whole_mask=whole))


def _logits(model: Any, batch: dict[str, torch.Tensor], autocast: torch.dtype | None, whole_mask: bool) -> torch.Tensor:
    if whole_mask:
        batch["attention_mask"] = attention.whole_mask(batch["attention_mask"])
    device = batch["input_ids"].device.type
    # Not cached: a graph would read weights as they were when it was recorded.
    with torch.autocast(device, autocast, cache_enabled=False) if autocast else contextlib.nullcontext():
        logits: torch.Tensor = model(**batch).logits
        return logits.float()


@torch.no_grad()
def predict(
    model: torch.nn.Module,
    collator: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]],
    rows: Sequence[dict[str, Any]],
    batch_size: int = 64,
    autocast: torch.dtype | None = None,
    computed: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None = None,
) -> np.ndarray:
    """Return the logits of all rows in their order: float32, shape (items, labels).

    Rows of similar length share a batch, so there is little padding. The model's training mode is restored. Every
    process of a distributed run must call this: each computes a share of the rows, and all get the same result.
    autocast: the dtype training computes in, e.g. torch.bfloat16, where the model is held in float32.
    computed: `logits_of` this model; None: it is called.
    """
    if not rows:
        raise ValueError("no rows to predict; give at least one example")
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda position: -len(rows[position]["input_ids"]))
    order = order[processes.rank() :: processes.world_size()]
    parts: list[torch.Tensor] = []
    with evaluating(model), processes.computing_together(model) as callable_model:
        for start in range(0, len(order), batch_size):
            collated = collator([rows[position] for position in order[start : start + batch_size]])
            inputs = {name: value for name, value in collated.items() if name != "labels"}
            batch = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
            parts.append(computed(batch) if computed else _logits(callable_model, batch, autocast, False))
    shares = processes.gather((order, torch.cat(parts).cpu().numpy() if parts else None))
    logits = np.empty((len(rows), next(share.shape[1] for _, share in shares if share is not None)), np.float32)
    for places, share in shares:
        if share is not None:
            logits[places] = share
    return logits


def readings(logits: np.ndarray, labels: Sequence[str]) -> list[Reading]:
    """Return the label word of each row's largest logit; for regression (no labels) the number itself.

    A row that is not finite (a diverged model) reads as None.
    """
    finite = np.isfinite(logits).all(axis=1)
    if not labels:
        return [float(row[0]) if ok else None for row, ok in zip(logits, finite, strict=True)]
    if logits.shape[1] != len(labels):
        raise ValueError(
            f"logits have {logits.shape[1]} columns but there are {len(labels)} labels: {', '.join(labels)}"
        )
    best = np.argmax(np.where(finite[:, None], logits, 0.0), axis=1)
    return [labels[column] if ok else None for column, ok in zip(best, finite, strict=True)]
