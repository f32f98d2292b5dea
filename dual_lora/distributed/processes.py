"""The processes of one run: which one this is, what all of them agree on, what only the first one does.

A run on one process needs none of this and every function then does the obvious. In a group (torchrun's environment
variables) the first process, the "main" one, holds the lock, writes files and makes the record.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")
# A rank may read data or convert a checkpoint for this long while the others wait for it.
PATIENCE = datetime.timedelta(minutes=60)


def join(device: str) -> None:
    """Join the group that torchrun's environment describes; without one, do nothing.

    Control messages (signals, results) go over gloo in host memory also on GPUs, where they wait for no kernel.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(local_rank())
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)


def leave() -> None:
    """Leave the group in good order; a process that failed just ends, and the others notice."""
    if grouped():
        dist.destroy_process_group()


def grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if grouped() else 0


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def world_size() -> int:
    return dist.get_world_size() if grouped() else 1


def is_main() -> bool:
    return rank() == 0


def device_name(device: str) -> str:
    """Return the device of this process: "cpu", "cuda", or "cuda:3" for the fourth process of a node."""
    return f"cuda:{local_rank()}" if device == "cuda" and grouped() else device


def visible_cards() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def uses_gpu(device: str) -> bool:
    """Return whether `launch.device=device` means a GPU here."""
    return device != "cpu" and torch.cuda.is_available()


def barrier() -> None:
    """Wait for the others, e.g. for a file that the main process writes."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process. Over host memory: no device waits."""
    if world_size() == 1:
        return flag
    value = torch.tensor([float(flag)])
    dist.all_reduce(value)
    return bool(value.item())


def largest(number: int) -> int:
    """Return the largest of the processes' numbers, below 2²⁴. Over host memory: no device waits."""
    if world_size() == 1:
        return number
    value = torch.tensor([float(number)])
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value.item())


def total(values: list[int]) -> list[int]:
    """Return the sums over the processes."""
    if world_size() == 1 or not values:
        return values
    sums = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(sums)
    return sums.tolist()


def gather(value: Value) -> list[Value]:
    """Return the value of every process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    # Pickles travel between the processes of one run only; nothing that comes from a file is unpickled.
    dist.all_gather_object(values, value)
    return values


def from_main(make: Callable[[], Value]) -> Value:
    """Return what `make` returns in the main process, in every process; an exception there is raised everywhere."""
    if world_size() == 1:
        return make()
    sent: list[Any] = [None, None]
    if is_main():
        try:
            sent[0] = make()
        except Exception as error:
            sent[1] = error
    dist.broadcast_object_list(sent, src=0)
    if sent[1] is not None:
        raise sent[1]
    return sent[0]


@contextmanager
def held_by_main(resource: AbstractContextManager[Any]) -> Iterator[None]:
    """Hold a resource (a lock) in the main process for all. What it raises on entry is raised in every process."""
    from_main(lambda: resource.__enter__() and None)
    try:
        yield
    finally:
        if is_main():
            resource.__exit__(None, None, None)


@contextmanager
def computing_together(model: torch.nn.Module) -> Iterator[Any]:
    """Yield the model in a form that processes may call different numbers of times.

    Where weights are split a forward pass is a collective: every process gathers them with the others. Work that is
    spread over the processes (evaluation) ends at different times, so whoever is done keeps up with empty calls until
    all are.
    Models that are whole in every process are yielded as they are.
    """
    if world_size() == 1 or not is_partitioned(model):
        yield model
        return
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    keeping_up = False

    def announce(*_: Any) -> None:
        if not keeping_up:
            any_of(True)

    # All calls have to go the same way, or the order in which ZeRO-3 fetches weights differs between processes: so the
    # model inside PEFT's wrapper is called, where the adapters are.
    hook = inner.register_forward_pre_hook(announce)
    try:
        yield inner
        keeping_up = True
        ids = torch.zeros((1, 2), dtype=torch.long, device=device_of(model))
        was_training = inner.training
        inner.eval()
        while any_of(False):
            with torch.no_grad():
                inner(input_ids=ids, attention_mask=torch.ones_like(ids))
        inner.train(was_training)
    finally:
        hook.remove()


def is_partitioned(model: torch.nn.Module) -> bool:
    """Return whether weights are split (FSDP2, ZeRO-3): a forward pass then needs every process."""
    return any(hasattr(parameter, "ds_id") or hasattr(parameter, "placements") for parameter in model.parameters())


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
