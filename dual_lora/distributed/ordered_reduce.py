"""Sums of gradients that do not depend on how many processes took the micro-batches.

One process adds its micro-batches up one after the other. NCCL and gloo begin each part of a sum at another process,
and float32 sums in another order have other last digits, which training amplifies: Dual LoRA takes signs. Here N
processes with one micro-batch each add up as one process with N of them, to the last bit where N is a power of two
(a mean divides by N). The bytes that are sent are those of a ring's all-reduce.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

# torch 2.13 has a new name and warns about the old one.
_gather_flat = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def ordered_all_reduce(tensor: torch.Tensor, group: Any = None) -> torch.Tensor:
    """Replace a flat tensor by the sum over the processes, added up in the order of their ranks, and return it.

    tensor: (elements,), contiguous, any floating dtype; alike in all processes of the group.
    """
    processes = dist.get_world_size(group)
    if processes <= 2:  # two numbers have one sum
        dist.all_reduce(tensor, group=group)
        return tensor
    missing = -len(tensor) % processes
    sent = torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor
    share = ordered_reduce_scatter(sent.view(processes, -1), group)
    all_gather(sent.view(processes, -1), share, group)
    if missing:
        tensor.copy_(sent[: len(tensor)])
    return tensor


def ordered_reduce_scatter(rows: torch.Tensor, group: Any = None) -> torch.Tensor:
    """Return the sum over the processes of the row with this process's rank, added up in the order of their ranks.

    rows: (processes, elements), contiguous, any floating dtype; alike in all processes of the group.
    """
    if len(rows) == 1:
        return rows[0]
    parts = torch.empty_like(rows)
    dist.all_to_all_single(parts, rows, group=group)  # row r: what process r has of the share that is added up here
    total, *others = parts
    for part in others:
        total += part
    return total


def all_gather(rows: torch.Tensor, share: torch.Tensor, group: Any = None) -> None:
    """Write into row r of `rows` (processes, elements) the `share` (elements,) of process r."""
    _gather_flat(rows.view(-1), share, group=group)


def register_ordered_hook(model: DistributedDataParallel) -> None:
    """Let torch's DDP add up in the order of the ranks; to be called before the first backward pass.

    On GPUs the sums overlap the backward pass, as DDP's own do.
    """
    group = model.process_group
    processes = dist.get_world_size(group)
    if processes <= 2:
        return
    side = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None

    # torch reads these annotations, so this file has no `from __future__ import annotations`.
    def mean(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        gradients = bucket.buffer()
        if side is None:
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            done.set_result(ordered_all_reduce(gradients.div_(processes), group))
            return done
        done = torch.futures.Future(devices=[model.device])
        side.wait_stream(torch.cuda.current_stream(model.device))
        with torch.cuda.stream(side):  # whoever waits for the result then waits for this stream
            done.set_result(ordered_all_reduce(gradients.div_(processes), group))
        return done

    model.register_comm_hook(None, mean)


def squared_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of the squares of all elements, float64: however gradients are split, its first 15 digits hold."""
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(torch._foreach_norm(list(gradients), 2, dtype=torch.float64)).square().sum()


def clip(parameters: Sequence[torch.nn.Parameter], largest: float) -> torch.Tensor:
    """Scale the parameters' gradients so that their norm is at most `largest`, as torch does; return what it was."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = squared_norm(gradients).sqrt().float()
    if math.isfinite(largest):
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm
