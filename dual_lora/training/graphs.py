"""Micro-steps and forward passes as CUDA graphs: recorded once per shape and then replayed by one call.

    steps = GraphedSteps(micro_step, parameters, recorder=CudaRecorder())
    loss = steps(batch, items)          # forward, loss and backward: gradients are added to `parameter.grad`
    ... clip, optimizer.step(), model.zero_grad() as ever

    passes = GraphedCalls(forward, recorder=recorder)       # without gradients, as for a validation loss
    loss = passes(batch)

The first batch of a shape is computed as without graphs, which also loads and compiles what the shape needs; the second
one is recorded, so a shape that comes once costs nothing more. A recording computes nothing and draws no random number:
it is replayed for the very batch that it was made with. What is replayed are the kernels of a function on the memory
that they saw, so batches are copied into buffers of the graph, and gradients stay in the same storage.

All graphs of a recorder share one pool of memory, and calls without a graph use it too (`recorders`). Its size is that
of the largest call, since they run one after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dual_lora.config import ConfigError, RunConfig
from dual_lora.config.schedule import planned_obstacle
from dual_lora.distributed import processes
from dual_lora.distributed.ordered_reduce import ordered_all_reduce
from dual_lora.kernels.beside import branched
from dual_lora.training.recorders import Recorder

logger = logging.getLogger(__name__)
MOST_GRAPHS = 48
_ALIGNMENT = 128  # bytes
_COLLECTED = 2**30  # bytes

Batch = Mapping[str, Tensor]
Function = Callable[[dict[str, Tensor], Any], Tensor]


class StaticGradients:
    """Gradients that stay in one storage per dtype while the Trainer sets `parameter.grad` to None at every step.

    Holds those parameters that have a gradient when it is made: the others must stay without one, or the optimizer
    would let them decay. Offsets are multiples of 128 bytes.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.grad is not None]
        self.flat: list[Tensor] = []
        self._views: dict[int, Tensor] = {}
        groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for place, parameter in enumerate(self.parameters):
            groups.setdefault((parameter.dtype, parameter.device), []).append(place)
        for (dtype, device), places in groups.items():
            multiple = _ALIGNMENT // dtype.itemsize
            sizes = [-(-self.parameters[place].numel() // multiple) * multiple for place in places]
            flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
            self.flat.append(flat)
            offset = 0
            for place, size in zip(places, sizes, strict=True):
                parameter = self.parameters[place]
                view = flat.as_strided(parameter.shape, parameter.stride(), offset)
                assert parameter.grad is not None
                self._views[place] = view.copy_(parameter.grad)
                parameter.grad = view
                offset += size

    def restore(self) -> None:
        """Give the parameters their storage again, filled with zeros, if `zero_grad` has taken it away."""
        if self.parameters and self.parameters[0].grad is self._views[0]:
            return
        for flat in self.flat:
            flat.zero_()
        for place, parameter in enumerate(self.parameters):
            parameter.grad = self._views[place]

    def collect(self, function: Callable[[], Tensor]) -> Tensor:
        """Return `function()`, whose gradients are added in the end by a few launches, not each by one of its own.

        Large ones, as of full fine-tuning, are added at once: they would be held twice.
        """
        if sum(flat.nbytes for flat in self.flat) > _COLLECTED:
            return function()
        for parameter in self.parameters:
            parameter.grad = None
        try:
            with branched() as branch:
                result = function()
            found = {place: p.grad for place, p in enumerate(self.parameters) if p.grad is not None}
            if branch is not None and branch.addresses - {grad.data_ptr() for grad in found.values()}:
                raise RuntimeError("a gradient was read before it was computed")
            torch._foreach_add_([self._views[place] for place in found], list(found.values()))
        finally:
            for place, parameter in enumerate(self.parameters):
                parameter.grad = self._views[place]
        return result

    def average(self, processes: int) -> None:
        """Replace every gradient by its mean over the processes, with the bits of `ordered_reduce`'s hook."""
        for flat in self.flat:
            ordered_all_reduce(flat.div_(processes))


def obstacle(config: RunConfig, draws: bool = False) -> str | None:
    """Return why the steps of a run are not recorded, as far as its settings tell; None if they may be.

    draws: the model draws random numbers in training; see `draws_numbers`.

    Raises `ConfigError` if `launch.graphs=on` cannot be met.
    """
    found = planned_obstacle(config.launch, config.method)
    if found is None and config.launch.gradient_checkpointing and draws:
        found = "with activation checkpointing and dropout, each block's random numbers are kept on the host"
    if found is None and not processes.uses_gpu(config.launch.device):
        found = "there is no GPU"
    if found is not None and config.launch.graphs == "on":
        raise ConfigError(f"launch.graphs=on: {found}; use launch.graphs=auto, or off")
    return found


def draws_numbers(model: torch.nn.Module) -> bool:
    """Return whether a training of `model` may draw random numbers: dropout of its modules, or in its config."""
    settings = getattr(model, "config", None)
    shares = [value for name, value in vars(settings).items() if "drop" in name] if settings is not None else []
    shares += [module.p for module in model.modules() if isinstance(module, torch.nn.modules.dropout._DropoutNd)]
    return any(isinstance(share, float) and share > 0 for share in shares)


@dataclass
class _Graph:
    inputs: list[Tensor]
    replay: Callable[[], Tensor]
    uses: int = 0


class GraphedCalls:
    """Computes a function of a batch by graphs where it can, and otherwise by calling it.

    Args:
        function: (batch, items) → one tensor, detached. It may read nothing that changes between calls but its
            arguments, parameters and buffers, and random numbers.
        recorder: `CudaRecorder()`, or `Recorder()` to compute on the same buffers without graphs; None: no graphs. Its
            memory is shared by all that are given the same one.
        follows: whether whatever else `function` reads now is what a recording of it reads, or read: else it is called.
        required: raise if a call cannot be recorded, instead of going on without graphs.
        most: graphs to keep; the least used one is dropped.
    """

    _what = "evaluation"

    def __init__(
        self,
        function: Function,
        *,
        recorder: Recorder | None,
        follows: Callable[[], bool] = lambda: True,
        required: bool = False,
        most: int = MOST_GRAPHS,
    ) -> None:
        self._function, self._recorder = function, recorder
        self._follows, self._required, self._most = follows, required, most
        self._graphs: dict[Hashable, _Graph] = {}
        self._generation = 0  # of the recorder's memory in which the graphs were recorded
        self._seen: set[Hashable] = set()
        self.reason: str | None = None  # why no graphs are used (any longer)
        self.captures = self.replays = self.eager = 0

    def __call__(self, batch: Batch, items: Any = None) -> Tensor:
        """Return what the function does. `items`: its second argument; the same graph serves tensors of any value."""
        graph = self._graph(batch, items)
        if graph is None:
            self.eager += 1
            return self._called(lambda: self._function(dict(batch), items))
        torch._foreach_copy_(graph.inputs, _tensors(batch, items), non_blocking=True)
        graph.uses += 1
        self.replays += 1
        return graph.replay().clone()

    def close(self) -> None:
        """Give the memory of all graphs back."""
        self._graphs.clear()
        self._recorder = None

    def report(self) -> dict[str, Any]:
        """Return what a record holds: graphs in use, recordings, replays, calls without one, and why."""
        self._drop_stale()
        counts = {"graphs": len(self._graphs), "captures": self.captures, "replays": self.replays, "eager": self.eager}
        return {**counts, "reason": self.reason}

    def _drop_stale(self) -> None:
        """Drop graphs in whose memory something else is now; see `Recorder`."""
        if self._recorder is not None and self._recorder.generation != self._generation:
            self._graphs.clear()
            self._generation = self._recorder.generation

    def _called(self, function: Callable[[], Tensor]) -> Tensor:
        return function() if self._recorder is None else self._recorder.run(function)

    def _graph(self, batch: Batch, items: Any) -> _Graph | None:
        """Return the graph for a batch, made now if its shape was computed before; None: call the function."""
        if self._recorder is None:
            return None
        self._drop_stale()
        key = (
            tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items()),
            None if isinstance(items, Tensor) else items,
        )
        if key not in self._seen or not self._follows():
            self._seen.add(key)
            return None
        return self._graphs.get(key) or self._record(self._recorder, key, batch, items)

    def _record(self, recorder: Recorder, key: Hashable, batch: Batch, items: Any) -> _Graph | None:
        inputs = [tensor.clone() for tensor in _tensors(batch, items)]
        own = dict(zip(batch, inputs, strict=False))
        own_items = inputs[-1] if isinstance(items, Tensor) else items
        try:
            replay = recorder.record(lambda: self._recorded(dict(own), own_items))
        except Exception as error:
            if self._required:
                raise RuntimeError(f"launch.graphs=on, but a step cannot be recorded: {error}") from error
            self.reason = _told(error)
            self.close()
            logger.warning("%s goes on without CUDA graphs: %s", self._what, self.reason)
            return None
        self.captures += 1
        if len(self._graphs) >= self._most:
            del self._graphs[min(self._graphs, key=lambda known: self._graphs[known].uses)]
        self._graphs[key] = _Graph(inputs, replay)
        return self._graphs[key]

    def _recorded(self, batch: dict[str, Tensor], items: Any) -> Tensor:
        """Return what the function does; a recording calls this."""
        return self._function(batch, items)


class GraphedSteps(GraphedCalls):
    """Computes micro-steps, which add gradients to `parameter.grad` by a backward pass, as `GraphedCalls` does.

    Args:
        micro_step: (batch, items) → loss, detached.
        parameters: what is trained.
        options: of `GraphedCalls`.
    """

    _what = "training"

    def __init__(self, micro_step: Function, parameters: Sequence[torch.nn.Parameter], **options: Any) -> None:
        super().__init__(micro_step, **options)
        self._parameters = list(parameters)
        self._gradients: StaticGradients | None = None

    def __call__(self, batch: Batch, items: Any = None) -> Tensor:
        """Return the loss of a micro-batch, (); its gradients are added to those of the step's earlier ones."""
        if self._gradients is not None:
            self._gradients.restore()
        loss = super().__call__(batch, items)
        if self._gradients is None:
            self._gradients = StaticGradients(self._parameters)
        return loss

    def _recorded(self, batch: dict[str, Tensor], items: Any) -> Tensor:
        assert self._gradients is not None  # the first micro-batch was computed
        return self._gradients.collect(lambda: self._function(batch, items))

    def average(self, processes: int) -> None:
        """Average the gradients of the step over the processes; after its last micro-batch."""
        if processes > 1 and self._gradients is not None and dist.is_initialized():
            self._gradients.average(processes)


def _tensors(batch: Batch, items: Any) -> list[Tensor]:
    return [*batch.values(), *([items] if isinstance(items, Tensor) else [])]


def _told(error: Exception) -> str:
    """Return an error's kind and its first line; the last one of a scripted function's, which begins with a trace."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1 if 'TorchScript' in lines[0] else 0].strip()}"
