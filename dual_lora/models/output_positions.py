"""Logits only where they are needed: they are rows × length × vocabulary numbers, most of which are never used.

    with logits_at(model.get_output_embeddings(), kept, ids.shape):
        logits = model(input_ids=ids).logits        # (1, len(kept), vocabulary)

Training keeps the positions with a loss (`training.loss`), ranking those of the answers.

transformers' own `logits_to_keep` is not enough. Before 5.23 it takes the same columns of every row, and answers end at
different places. From 5.23 on it takes a mask; the host has to wait for its count, so it cannot be in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def logits_at(output_layer: torch.nn.Module, kept: torch.Tensor, shape: Sequence[int]) -> Iterator[None]:
    """Pass only some positions to `output_layer`, as one row. The model's other layers see all of them.

    Args:
        output_layer: maps hidden states (rows, length, width) to logits; `get_output_embeddings()` of any causal model.
        kept: int64, places in the flattened (rows, length), in the order in which their logits are wanted.
        shape: (rows, length) of the input; another one raises `RuntimeError` when the layer is called.
    """

    def keep(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = arguments
        if tuple(hidden.shape[:2]) != tuple(shape):
            raise RuntimeError(
                f"the output layer got hidden states for {tuple(hidden.shape[:2])} positions, expected {tuple(shape)}"
            )
        return (hidden.flatten(0, 1).index_select(0, kept).unsqueeze(0), *others)

    handle = output_layer.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
