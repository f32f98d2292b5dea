"""What training minimises, for every task: from labels that say what is wanted where, and from nothing else.

    shift_labels = next_token_labels(labels)                                     # what each position is to predict
    objective = Objective(head, model, label_smoothing=0.1, rows=16)
    loss, outputs = objective(model, batch, items)

transformers decides by the name of a model's class whether labels are shifted, by which loss, and how many of them a
batch has. A wrapper or a class of one's own has another name, and then trains on another token silently. So no
model is given labels here, and the Trainer's label smoothing is not used.

Vocabulary-sized work is done only where there is a loss: the logits of prompts and padding are never computed. The more
of a text is prompt, and the larger the vocabulary, the more memory this saves (docs/launching.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from dual_lora.models import attention
from dual_lora.models.output_positions import logits_at
from dual_lora.tasks.base import Head
from dual_lora.tasks.encoding import IGNORED
from dual_lora.tasks.padding import loss_places

NO_INPUTS = ("labels", "shift_labels", "loss_positions")  # of a batch: what a model that writes is not given


class Objective:
    """The loss of a micro-batch, as a share of its optimizer step's.

    Args:
        model: with its adapter, before the Trainer wraps it: its output layer is told which positions are wanted.
        label_smoothing: see `mean_loss`.
        rows: of an optimizer step, on all processes.
        validation: the validation rows, with `labels`. The Trainer takes the mean over rows of what a batch
            gives; a batch therefore gives its sum by the tokens that its rows have on average over the whole set, and
            the mean is that over all tokens, however they are batched.
    """

    def __init__(
        self, head: Head, model: Any, label_smoothing: float, rows: int, validation: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._head, self._label_smoothing, self._rows = head, label_smoothing, rows
        if head.kind == "causal_lm" and len(validation):
            learned = sum(label != IGNORED for row in validation for label in row["labels"][1:])
            self._tokens_per_row = learned / len(validation)
        self._output_layer = model.get_output_embeddings() if head.kind == "causal_lm" else None
        self._attends_by_sdpa = getattr(getattr(model, "config", None), "_attn_implementation", None) == "sdpa"

    def __call__(
        self, model: Callable[..., Any], batch: Mapping[str, torch.Tensor], items: torch.Tensor | float | None
    ) -> tuple[torch.Tensor, Any]:
        """Return loss and model output. `items`: labels of the optimizer step; None: while validating, see above."""
        smoothing = self._label_smoothing
        if self._output_layer is not None:
            if items is None:
                items = self._tokens_per_row * len(batch["shift_labels"])
            return token_loss(model, batch, self._output_layer, items=items, label_smoothing=smoothing)
        rows = None if items is None else self._rows
        return row_loss(
            model,
            batch,
            items=rows,
            label_smoothing=smoothing,
            regression=self._head.regression,
            whole_mask=self._attends_by_sdpa and batch["attention_mask"].is_cuda,
        )


def next_token_labels(labels: torch.Tensor) -> torch.Tensor:
    """Return what each position is to predict: the label of the position after it; nothing for the last one.

    labels: int64, (rows, length), the token of a position or `IGNORED`. Returns the same shape.
    """
    return torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], dim=1)


def loss_positions(shift_labels: torch.Tensor) -> torch.Tensor:
    """Return the places in the flattened labels (rows, length) that have one: int64, as many as `loss_places` says.

    What is added is the last place of the first row, which predicts nothing; where all places are taken, they are in
    their order.
    """
    kept = (shift_labels != IGNORED).flatten().nonzero().squeeze(1)
    number = loss_places(len(kept), shift_labels.numel())
    if number == shift_labels.numel():
        return torch.arange(number)
    return torch.cat([kept, kept.new_full((number - len(kept),), shift_labels.shape[1] - 1)])


def mean_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    items: torch.Tensor | float | None = None,
    label_smoothing: float = 0.0,
    regression: bool = False,
) -> torch.Tensor:
    """Return the sum of the items' losses divided by `items`: cross entropy, or the squared error of a regression.

    Args:
        logits: (items, classes), any floating dtype; the loss is computed in float32.
        labels: (items,), int64 classes (`IGNORED`: no loss), or numbers for a regression.
        items: what to divide by: the items of the whole optimizer step, so that the losses of its micro-batches, on
            all processes, add up to the mean over the global batch. None: those of this call.
        label_smoothing: ε. The wanted class gets 1 − ε of the probability and all classes share ε evenly.
    """
    if items is None:
        items = labels.numel() if regression else (labels != IGNORED).sum()
    if regression:
        total = F.mse_loss(logits.squeeze(-1).float(), labels.float(), reduction="sum")
    else:
        total = F.cross_entropy(
            logits.float(), labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
        )
    return total / items


def token_loss(
    model: Callable[..., Any],
    batch: Mapping[str, torch.Tensor],
    output_layer: torch.nn.Module,
    *,
    items: torch.Tensor | float | None = None,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, Any]:
    """Return the loss of a causal language model and the model's output, whose logits are those of the kept positions.

    Args:
        batch: the model's inputs, and `shift_labels`: int64, (rows, length), see `next_token_labels`. `labels` are left
            out. `loss_positions`, if given, are the places in them that count.
        output_layer: `get_output_embeddings()` of the model; called once.
        items, label_smoothing: as in `mean_loss`.
    """
    inputs = {name: value for name, value in batch.items() if name not in NO_INPUTS}
    wanted = batch["shift_labels"]
    kept = batch.get("loss_positions")
    if kept is None:  # how many there are is asked of the device
        kept = (wanted != IGNORED).flatten().nonzero().squeeze(1)
    with logits_at(output_layer, kept, wanted.shape):
        outputs = model(**inputs)
    found = mean_loss(outputs.logits[0], wanted.flatten()[kept], items=items, label_smoothing=label_smoothing)
    return found, outputs


def row_loss(
    model: Callable[..., Any],
    batch: Mapping[str, torch.Tensor],
    *,
    items: torch.Tensor | float | None = None,
    label_smoothing: float = 0.0,
    regression: bool = False,
    whole_mask: bool = False,
) -> tuple[torch.Tensor, Any]:
    """Return the loss of a model with one output per row and the model's output. `batch` holds `labels`, (rows,).

    whole_mask: give the model its mask as `models.attention.whole_mask` has it.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if whole_mask:
        inputs["attention_mask"] = attention.whole_mask(inputs["attention_mask"])
    outputs = model(**inputs)
    found = mean_loss(
        outputs.logits, batch["labels"], items=items, label_smoothing=label_smoothing, regression=regression
    )
    return found, outputs
