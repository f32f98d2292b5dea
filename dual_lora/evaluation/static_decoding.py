"""Decoding with keys and values in tensors of a fixed size, so that one step can be a CUDA graph.

    static = decoding_for(model, graphs="auto")         # None where keys and values must grow
    cache = static.cache(prompt, config, positions)     # a batch's prompts, and room for its replies
    with static.steps(model):
        model.generate(..., past_key_values=cache)      # of one token at a time

A step computes the same numbers with a recorder and without: the first of a batch is called, the second recorded, the
others are replayed. What transformers does between steps (beams, masks, stopping) is as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from dual_lora.distributed import processes
from dual_lora.models.head import unwrapped
from dual_lora.training.recorders import CudaRecorder, Recorder, on_own_stream

logger = logging.getLogger(__name__)
_MULTIPLE = 16  # of positions: masks of attention kernels are read in whole vectors


class _Cache(StaticCache):
    """Beams change places in the same memory, where transformers makes new tensors."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        # Under autocast values are in bfloat16, but positions make float32 of keys: a cache that grows widens them.
        return super().update(key_states, value_states.to(key_states.dtype), *args, **kwargs)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for layer in self.layers:
            layer.keys.copy_(layer.keys.index_select(0, beam_idx))
            layer.values.copy_(layer.values.index_select(0, beam_idx))


class StaticDecoding:
    """Makes the caches and computes the steps of one `generate`; see the module."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self.replays = 0

    def cache(self, prompt: DynamicCache, config: Any, positions: int) -> StaticCache | None:
        """Return keys and values of `prompt` with room for so many positions; None where a window slides over them.

        A layer of `prompt` is dropped once it is copied: two whole caches would be the most that an evaluation takes.
        """
        cache = _Cache(config=config, max_cache_len=-(-positions // _MULTIPLE) * _MULTIPLE)
        if any(type(layer) is not StaticLayer for layer in cache.layers):
            return None
        for place, layer in enumerate(prompt.layers):
            cache.update(layer.keys, layer.values, place)
            layer.keys = layer.values = None
        return cache

    @contextmanager
    def steps(self, model: Any) -> Iterator[None]:
        """Compute the model's calls inside, which are of one shape, as a graph."""
        if self._recorder is None:
            yield
            return
        inner = unwrapped(model)
        computed = inner.forward
        own = vars(inner).get("forward")
        inner.forward = wraps(computed)(_Step(self, self._recorder, computed))  # generate looks at its signature
        try:
            yield
        finally:
            del inner.forward
            if own is not None:
                inner.forward = own

    def stream(self, device: torch.device) -> AbstractContextManager[None]:
        """Return where to compute: graphs are recorded on a stream of their own."""
        return nullcontext() if self._recorder is None else on_own_stream(device)

    def failed(self, error: Exception) -> None:
        """Go on without graphs."""
        self._recorder = None
        logger.warning("decoding goes on without CUDA graphs: %s", str(error).partition("\n")[0])


def decoding_for(model: Any, graphs: str) -> StaticDecoding | None:
    """Return how `model` decodes on a GPU; None elsewhere, and where processes share its weights.

    graphs: `launch.graphs`; with "off" nothing is recorded, and the numbers are the same.
    """
    if next(model.parameters()).device.type != "cuda" or processes.is_partitioned(model):
        return None
    return StaticDecoding(None if graphs == "off" else CudaRecorder())


class _Step:
    """The forward pass of a batch's decoding steps."""

    def __init__(self, owner: StaticDecoding, recorder: Recorder, computed: Callable[..., Any]) -> None:
        self._owner, self._recorder, self._computed = owner, recorder, computed
        self._calls = 0
        self._inputs: dict[str, Tensor] = {}
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, **inputs: Any) -> Any:
        self._calls += 1
        given = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        if self._calls == 2:
            self._record(inputs, given)
        if self._replay is None or _shapes(given) != _shapes(self._inputs):
            return self._computed(**inputs)
        for name, value in given.items():
            self._inputs[name].copy_(value)
        self._owner.replays += 1
        return CausalLMOutputWithPast(logits=self._replay(), past_key_values=inputs["past_key_values"])

    def _record(self, inputs: dict[str, Any], given: dict[str, Tensor]) -> None:
        self._inputs = {name: value.clone() for name, value in given.items()}
        own = {**inputs, **self._inputs}
        try:
            self._replay = self._recorder.record(lambda: self._computed(**own).logits)
        except Exception as error:
            self._owner.failed(error)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
