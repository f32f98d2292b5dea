"""Recording a function's kernels as a CUDA graph, in memory that graphs share with what is computed between them.

A graph keeps its memory from one replay to the next, so a step without a graph would need as much again. `CudaRecorder`
lets both use one pool: a replay and an ordinary call come one after the other, and neither leaves anything in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Recorder:
    """Calls what it is given: steps on a graph's buffers, without graphs and without a GPU.

    `generation` rises when a call has left memory where replays of what was recorded before would write: none may
    follow.
    """

    generation = 0

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return a call that computes `function` again and returns its output, which the next call may overwrite."""
        return function

    def run(self, function: Callable[[], Result]) -> Result:
        """Return `function()`, computed between two replays in their memory."""
        return function()


class CudaRecorder(Recorder):
    """Records on the current stream, which must not be the default one."""

    def __init__(self) -> None:
        self._pool = torch.cuda.MemPool()
        self._kept: torch.cuda.CUDAGraph | None = None

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Raises what `function` raises, if it cannot be recorded: the random numbers are then as they were."""
        if self._kept is None:
            # torch's pool of pinned memory is there as long as a graph of it is, and then refuses another's (2.11).
            self._kept, _ = self._recorded(lambda: torch.zeros(1, device="cuda"))
        try:
            graph, output = self._recorded(function)
        except torch.OutOfMemoryError:  # while it records, the allocator cannot give back what it keeps for others
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            graph, output = self._recorded(function)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def _recorded(self, function: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """As `torch.cuda.graph` does it, without its wait: the GPU goes on with what it was given before."""
        device = torch.cuda.current_device()
        generator = torch.cuda.default_generators[device]
        before = generator.clone_state()
        graph = torch.cuda.CUDAGraph()
        errors: list[Exception] = []
        ended = False
        try:
            # Another thread, as one that pins memory, may use CUDA meanwhile.
            graph.capture_begin(pool=self._pool.id, capture_error_mode="thread_local")
            try:
                with _waiting_refused(), torch.autograd.set_multithreading_enabled(False):
                    output = function()
            except Exception as error:
                errors.append(error)
                raise
            finally:
                graph.capture_end()
                ended = True
        except Exception as error:
            if not ended:  # what `capture_end` does after the step at which it failed
                torch._C._cuda_endAllocateToPool(device, self._pool.id)
                torch._C._cuda_releasePool(device, self._pool.id)
                _unended.append(graph)
            generator.graphsafe_set_state(before)  # a broken recording leaves it waiting for its end
            raise (errors or [error])[0] from None
        return graph, output

    def run(self, function: Callable[[], Result]) -> Result:
        """Return a copy in other memory if the result is a tensor."""
        before = self._in_use()
        # The backward pass allocates in the pool only if it is computed by this thread.
        with torch.cuda.use_mem_pool(self._pool), torch.autograd.set_multithreading_enabled(False):
            result = function()
        if isinstance(result, Tensor):
            result = result.clone()
        if self._in_use() > before:  # as a buffer that is made once
            self.generation += 1
        return result

    def _in_use(self) -> int:
        """Return the bytes of all tensors in the pool."""
        return sum(segment["allocated_size"] for segment in self._pool.snapshot())


_unended: list[torch.cuda.CUDAGraph] = []  # torch's allocators may still ask them what they are recording


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Let an operation that waits for the GPU raise before it breaks a recording, where torch knows of it."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, says torch
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def on_a_stream() -> bool:
    """Return whether the current stream is not the default one, so that graphs can be recorded."""
    return torch.cuda.is_initialized() and torch.cuda.current_stream() != torch.cuda.default_stream()


@contextmanager
def on_own_stream(device: torch.device) -> Iterator[None]:
    """Compute on a stream of one's own, which a recording needs; the default stream waits for it at the end.

    A whole training does so, as the nodes that add up gradients belong to the stream on which they were made.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.current_stream(device)
    own = torch.cuda.Stream(device, priority=-1)  # before what runs beside it (`kernels.beside`)
    own.wait_stream(before)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        before.wait_stream(own)
    torch.cuda.empty_cache()  # memory of one stream is not given to another
