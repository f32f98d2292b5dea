"""Vocabulary-sized work only where there is a loss: the prompt's and the padding's logits are never computed.

    with where_labels_are(model.get_output_embeddings(), inputs["labels"]) as labels:
        loss = model(**{**inputs, "labels": labels}).loss     # the loss of the whole batch, computed from fewer logits

A causal model's logits are rows × length × vocabulary numbers, in float32 for the loss; a prompt that is not trained on
is most of the rows. The last layer gets the kept positions as one row, and the labels are laid out to match, so the
model's own loss and the Trainer's label smoothing work as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dual_lora.tasks.encoding import IGNORED


@contextmanager
def where_labels_are(output_layer: torch.nn.Module, labels: torch.Tensor) -> Iterator[torch.Tensor]:
    """Let `output_layer` compute logits only for the positions whose next token has a label.

    Args:
        output_layer: maps hidden states (rows, length, width) to logits; called once inside the context.
        labels: int64, (rows, length), not shifted: the loss of a label is taken from the position before it.

    Yields:
        labels of shape (1, kept + 1), to be given to the model instead; its logits then have the same shape. They still
        are to be shifted by one, as every causal loss does: the first label and the last position are fillers.
    """
    flat = labels.flatten()
    counted = labels != IGNORED
    counted[:, 0] = False  # nothing comes before a row's first token
    targets = counted.flatten().nonzero().squeeze(1)
    kept = torch.cat([targets - 1, targets.new_zeros(1)])

    def keep(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = arguments
        if hidden.shape[:2] != labels.shape:
            raise RuntimeError(
                f"the output layer got hidden states for {tuple(hidden.shape[:2])} positions, the labels have "
                f"{tuple(labels.shape)}"
            )
        return (hidden.flatten(0, 1).index_select(0, kept).unsqueeze(0), *others)

    handle = output_layer.register_forward_pre_hook(keep)
    try:
        yield torch.cat([flat.new_full((1,), IGNORED), flat[targets]]).unsqueeze(0)
    finally:
        handle.remove()
