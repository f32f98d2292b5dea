"""Packed factors, kept while the caller promises that no factor changes."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dual_lora.kernels.spec import Factors

# By the layer's A: its factors' addresses, and what was packed from them. A context variable, so that another thread's
# promise does not affect a thread that trains.
_entries: ContextVar[MutableMapping[Tensor, tuple[tuple[int, ...], Any]] | None] = ContextVar("entries", default=None)


@contextmanager
def packed_once() -> Iterator[None]:
    """Promise that no factor changes inside; the fused kernels then pack a layer's factors at its first call only.

    `generate` of a Dual LoRA model does so for its own duration. Use it around a decoding loop of your own:

        with torch.no_grad(), packed_once():
            for _ in range(tokens):
                logits = model(...).logits

    What is kept takes 1.5 times the factors' memory and is freed at the end. W0 + dW is formed in every call.
    """
    if _entries.get() is not None:  # the outer promise holds for longer
        yield
        return
    token = _entries.set(WeakTensorKeyDictionary())
    try:
        yield
    finally:
        _entries.reset(token)


@contextmanager
def disabled() -> Iterator[None]:
    """Inside compiled programs: theirs may be CUDA graphs, whose memory no tensor of ours may hold."""
    token = _entries.set(None)
    try:
        yield
    finally:
        _entries.reset(token)


def get(factors: Factors) -> Any:
    """Return what is kept for these factors inside `packed_once`, or None."""
    entries = _entries.get()
    if entries is None or _captures(factors[0]):
        return None
    where, made = entries.get(factors[0], ((), None))
    return made if where == _where(factors) else None


def put(factors: Factors, made: Any) -> None:
    """Keep what was packed from these factors, if inside `packed_once`."""
    entries = _entries.get()
    if entries is not None and not _captures(factors[0]):
        entries[factors[0]] = (_where(factors), made)


def _where(factors: Factors) -> tuple[int, ...]:
    """Offloading moves parameters between calls."""
    return tuple(factor.data_ptr() for factor in factors)


def _captures(factor: Tensor) -> bool:
    """Whether a CUDA graph is captured: it is replayed after the promise has ended."""
    return factor.is_cuda and torch.cuda.is_current_stream_capturing()
