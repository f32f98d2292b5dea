"""Vocabulary-sized work only where there is a loss: the prompt's and the padding's logits are never computed.

    with where_labels_are(model.get_output_embeddings(), inputs["labels"]) as labels:
        loss = model(**{**inputs, "labels": labels}).loss     # the loss of the whole batch, computed from fewer logits

The labels are laid out to match the kept positions, so the model's own loss and the Trainer's label smoothing work as
they are. The more of a text is prompt, and the larger the vocabulary, the more memory this saves (docs/launching.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dual_lora.models.output_positions import logits_at

_IGNORED = -100  # the index without a loss of torch's cross entropy, and so of every model


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
    counted = labels != _IGNORED
    counted[:, 0] = False  # nothing comes before a row's first token
    targets = counted.flatten().nonzero().squeeze(1)
    kept = torch.cat([targets - 1, targets.new_zeros(1)])
    with logits_at(output_layer, kept, labels.shape):
        yield torch.cat([flat.new_full((1,), _IGNORED), flat[targets]]).unsqueeze(0)
