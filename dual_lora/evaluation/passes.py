"""How the forward passes of an evaluation are computed: on a GPU in few shapes, those that come again as CUDA graphs.

    passes = passes_for(model, graphs="auto")
    computed = passes.calls(forward)                # forward(batch, None) -> one tensor
    with passes.stream(device):
        values = computed(batch)
    passes.report()                                 # of all calls, for the record

Shapes, and so bits, are the same with graphs and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dual_lora.config.evaluation_batches import LOGITS_AT_ONCE
from dual_lora.distributed import processes
from dual_lora.training.graphs import Function, GraphedCalls
from dual_lora.training.recorders import CudaRecorder, Recorder, on_own_stream

# Not cuDNN's attention: of one query its results differ from call to call (cuDNN 9.19, torch 2.11, one H200).
_ORDERED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Passes:
    """See the module. few_shapes: pad batches by `tasks.padding`. recorder: None, no graphs."""

    def __init__(self, recorder: Recorder | None = None, *, few_shapes: bool = False) -> None:
        self.few_shapes, self._recorder = few_shapes, recorder
        self._calls: list[GraphedCalls] = []

    def calls(self, function: Function) -> GraphedCalls:
        """Return what computes `function`; it may read the model's weights, as they are now and as they will be."""
        self._calls.append(GraphedCalls(function, recorder=self._recorder))
        return self._calls[-1]

    def stream(self, device: torch.device) -> AbstractContextManager[None]:
        """Return where to compute: graphs are recorded on a stream of their own."""
        return nullcontext() if self._recorder is None else on_own_stream(device)

    def report(self) -> dict[str, Any]:
        """Return recordings, replays, passes without a graph, and why there are no graphs (any longer)."""
        counts = {name: sum(getattr(one, name) for one in self._calls) for name in ("captures", "replays", "eager")}
        return {**counts, "reason": next((one.reason for one in self._calls if one.reason), None)}


def passes_for(model: torch.nn.Module, graphs: str) -> Passes:
    """Return how `model` computes. Without graphs on a CPU, and where processes share its weights.

    graphs: `launch.graphs`; with "off" nothing is recorded, and the numbers are the same.
    """
    if next(model.parameters()).device.type != "cuda" or processes.is_partitioned(model):
        return Passes()
    return Passes(None if graphs == "off" else CudaRecorder(), few_shapes=True)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode inside; afterwards it is in the mode that it had."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def ordered_attention() -> AbstractContextManager[None]:
    """Attend inside by kernels that add in a fixed order."""
    return sdpa_kernel(_ORDERED)


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy on `device`, for which a GPU is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def negative_log_likelihoods(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return −log P(target), float32, (tokens,), from logits (tokens, vocabulary) in parts: each is a float32 copy."""
    parts = zip(logits.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
    return torch.cat([F.cross_entropy(rows.float(), ids, reduction="none") for rows, ids in parts])
