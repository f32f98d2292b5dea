"""Work that runs beside other work: what a recorded step does not need at once goes to a second stream.

The gradients of factors are needed at the step's end only, and W0 + dW of a late layer can be built while an early one
is computed. Both fill what GEMMs leave idle at their ends, and share the GPU with passes over activations, which wait
for memory; the first stream must have the higher priority. Every kernel computes what it computes elsewhere, in the
same order of sums, so no digit changes. Without a recording the host is what a step waits for: all is on one stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Calls of `Branch.run` whose memory may not be used again yet. Each has at most 0.2 GB with LLaMA-7B's layers.
UNDER_WAY = 2


class Ahead(NamedTuple):
    """What `fused.keep` would form, on its way on a branch until `made`."""

    kept: tuple[Tensor, ...]
    made: torch.cuda.Event


class Branch:
    """A stream beside the current one. All memory is the current one's, which has it back after waiting only."""

    def __init__(self, device: int) -> None:
        self._stream = _stream(device)
        self._under_way: deque[tuple[torch.cuda.Event, Any]] = deque()
        self._used = False
        self._ahead: dict[tuple[int, bool], Ahead] = {}
        self.addresses: set[int] = set()  # of results: a tensor held here could not become a parameter's `grad` itself

    def run(self, launch: Callable[[], None], reads: Any, results: Iterable[Tensor]) -> None:
        """Call `launch`, which fills `results` and allocates nothing, for after all that is launched by now.

        reads: whatever else it reads or writes, which is held for as long.
        """
        [done] = self.launch([launch])
        self._under_way.append((done, reads))
        self.addresses |= {result.data_ptr() for result in results}
        while len(self._under_way) > UNDER_WAY:
            torch.cuda.current_stream().wait_event(self._under_way.popleft()[0])

    def launch(self, launches: Iterable[Callable[[], None]]) -> list[torch.cuda.Event]:
        """Call each for after all that is launched by now, and return when each is done; they allocate nothing."""
        self._used = True
        self._stream.wait_stream(torch.cuda.current_stream())
        done = []
        with torch.cuda.stream(self._stream):
            for launch in launches:
                launch()
                done.append(self._stream.record_event())
        return done

    def put(self, weight: Tensor | None, factor: Tensor, ahead: Ahead) -> None:
        """Have what is formed of a weight and an update ready for `take`; `factor`: the update's A."""
        self.take(weight, factor, torch.bool)
        self._ahead[factor.data_ptr(), weight is None] = ahead

    def take(self, weight: Tensor | None, factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return what was put, if it is of `dtype`, for what is launched from now on; nothing a second time."""
        ahead = self._ahead.pop((factor.data_ptr(), weight is None), None)
        if ahead is None:
            return ()
        torch.cuda.current_stream().wait_event(ahead.made)  # also where it is dropped: its memory is used again
        return ahead.kept if ahead.kept[0].dtype == dtype else ()

    def join(self) -> None:
        """Let the current stream wait for all of it."""
        if self._used:
            torch.cuda.current_stream().wait_stream(self._stream)
        self._under_way.clear()
        self._ahead.clear()


@contextmanager
def branched() -> Iterator[Branch | None]:
    """While a CUDA graph is recorded, compute what is not needed at once beside the rest, inside, and all by the end.

    Until then nothing may read factor gradients, so parameters must have no `grad` when it begins. Each of `addresses`
    must be that of a `grad` at the end, not of what a sum or a copy was made from. The backward pass must run in this
    thread (`torch.autograd.set_multithreading_enabled`): others do not know of the branch.
    """
    if not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):
        yield None
        return
    branch = Branch(torch.cuda.current_device())
    token = _branch.set(branch)
    try:
        yield branch
    finally:
        _branch.reset(token)
    branch.join()


def branch() -> Branch | None:
    """Return where what is not needed at once may run; None: nowhere but here."""
    return _branch.get()


@lru_cache(maxsize=64)
def _stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


_branch: ContextVar[Branch | None] = ContextVar("branch", default=None)
