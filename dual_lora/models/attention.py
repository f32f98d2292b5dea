"""Attention without a mask where causality makes it superfluous.

A causal model reads no position after the one that it computes, so padding on the right is seen by padding only, which
has no loss. transformers builds a mask for it nevertheless, for which attention leaves its fastest kernel, and asks the
device at every step whether there is any padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# transformers makes no mask for an attention function that has no mask function of the same name.
_NAME = "sdpa_causal_without_mask"
AttentionInterface.register(_NAME, sdpa_attention_forward)


def needs_no_mask(model: Any) -> bool:
    """Return whether a transformers model attends to all earlier positions, and to no other, by torch's own attention.

    Not so for encoders and for sliding windows, whose masks say more than where padding is.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        model.get_output_embeddings() is not None
        and config._attn_implementation == "sdpa"
        and kinds == {"full_attention"}
        and getattr(config, "is_causal", True)
        and not getattr(config, "is_encoder_decoder", False)
    )


@contextmanager
def without_mask(model: Any) -> Iterator[None]:
    """Let a model whose padding is on the right attend without a mask. Others (`needs_no_mask`) stay as they are."""
    if not needs_no_mask(model):
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def with_distances(model: torch.nn.Module) -> Iterator[None]:
    """Give DeBERTa's encoders their table of relative positions, which they make in every pass, on the host in part."""
    hooks = []
    for encoder in (module for module in model.modules() if hasattr(module, "get_rel_pos")):
        with torch.no_grad():
            longest = torch.empty(1, model.config.max_position_embeddings, 1, device=model.device)
            table = encoder.get_rel_pos(longest)  # (1, longest, longest), int64; None if positions are absolute
        if table is not None:
            hooks.append(encoder.register_forward_pre_hook(partial(_give_distances, table), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _give_distances(table: torch.Tensor, _: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    length = (args[0] if args else kwargs["hidden_states"]).shape[1]
    return args, {**kwargs, "relative_pos": table[:, :length, :length]}


def whole_mask(mask: torch.Tensor) -> torch.Tensor:
    """Return an encoder's mask of padding, (rows, length), as attention reads it: bool, (rows, 1, length, length).

    transformers makes the same one, but asks the device first whether there is any padding, and leaves the mask out if
    there is none: a decision that a recorded step cannot take.
    """
    return mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


def causal_mask(mask: torch.Tensor, queries: int) -> torch.Tensor:
    """Return what the last `queries` of so many positions read: bool, (rows, 1, queries, length).

    mask: of padding, (rows, length). Position by position as transformers makes it, and like `whole_mask` without
    asking the device. Padding reads itself: what reads nothing is not a number in some kernels.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    own = places[-queries:, None]
    return mask.bool()[:, None, None, :] & (places <= own) | (places == own)
