"""Optimizer steps of ZeRO 1 to 3 with one exchange of gradients and, under ZeRO-3, one of weights.

DeepSpeed takes each tensor's gradient as it comes, so that those of a model that is trained whole can be freed while
the backward pass goes on. An adapter has hundreds of tensors and few elements: there the visits cost more than all that
is sent, once for each micro-batch, and under ZeRO-3 every tensor is fetched and freed twice a step besides. Here
gradients stay where they are until the last micro-batch of a step. Then they are summed in the order of ranks
(`ordered_sums`), measured and clipped as one tensor, and nothing waits for the GPU. ZeRO still splits what it splits:
a process sums, clips and updates its own share of what is trained, and the base's weights stay partitioned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from dual_lora.distributed.ordered_sums import gather_shares, squared_norm, sum_own_share

AT_MOST = 500_000_000  # elements: DeepSpeed's own buffer for gradients has as many by default, 2 GB


def suits(trained_elements: int, offload: bool) -> bool:
    """Return whether steps are made so: gradients stay whole meanwhile, and offloaded ones belong to the host."""
    return trained_elements <= AT_MOST and not offload


class OnceAStep:
    """Makes the optimizer steps of one ZeRO engine; to be made before its first backward pass.

    A norm that is not finite spoils the step as it does without DeepSpeed, and the loss that follows is not finite.
    DeepSpeed would skip the step, and to know whether it has to would wait for the GPU at each.
    """

    def __init__(self, engine: Any, world_size: int, stage: int) -> None:
        self._engine, self._optimizer, self._processes = engine, engine.optimizer, world_size
        self._group = self._optimizer.dp_process_group
        self._norm: torch.Tensor | None = None
        self._update = self._optimizer.step
        for hook in (*self._optimizer._grad_acc_hooks, *getattr(self._optimizer, "_leaf_module_hooks", ())):
            hook.remove()
        self._own: _Flat | _Cut = (_Cut if stage == 3 else _Flat)(self._optimizer, world_size)
        engine.allreduce_gradients = self._after_backward
        self._optimizer.step = self._step
        # The norm is taken and applied here.
        self._optimizer.unscale_and_clip_grads = lambda *_: None
        self._optimizer.compute_grad_norm = False  # stages 1 and 2
        self._optimizer._get_norm_groups = lambda: [torch.zeros(())]  # stage 3

    def _after_backward(self, *_: Any, **__: Any) -> None:
        if not self._engine.is_gradient_accumulation_boundary():
            return
        mean = sum_own_share(self._own.gradients().div_(self._processes), self._group)
        squares = squared_norm([mean])
        torch.distributed.all_reduce(squares, group=self._group)
        self._norm = squares.sqrt().float()
        if self._optimizer.clip_grad > 0:
            mean.mul_((self._optimizer.clip_grad / (self._norm + 1e-6)).clamp(max=1.0))
        for number, share in enumerate(mean.split(self._own.sizes)):
            self._optimizer.averaged_gradients[number] = [share]

    def _step(self, *_: Any, **__: Any) -> None:
        self._update()
        self._optimizer._global_grad_norm = self._norm
        if isinstance(self._own, _Cut):
            self._own.fetch_updated(self._group)


class _Flat:
    """Shares of stages 1 and 2: parts of the buffer of each group that its parameters are views of, one a process."""

    def __init__(self, optimizer: Any, processes: int) -> None:
        self._processes = processes
        self._groups: list[list[torch.nn.Parameter]] = optimizer.round_robin_bit16_groups
        self._padding: list[list[int]] = optimizer.round_robin_bit16_padding
        self.sizes = [int(size) for size in optimizer.partition_size]

    def gradients(self) -> torch.Tensor:
        """Return a row for each process, (processes, elements): what its share needs of this process's gradients."""
        rows = []
        for group, paddings, size in zip(self._groups, self._padding, self.sizes, strict=True):
            flat = torch.cat([pad(grad, (0, extra)) if extra else grad for grad, extra in _taken(group, paddings)])
            rows.append(pad(flat, (0, size * self._processes - len(flat))).view(self._processes, size))
        return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]


class _Cut:
    """Shares of stage 3: an equal part of every parameter, in the order of the parameters."""

    def __init__(self, optimizer: Any, processes: int) -> None:
        self._processes = processes
        self._flat: list[torch.Tensor] = optimizer.fp16_partitioned_groups_flat
        self._groups: list[list[torch.nn.Parameter]] = optimizer.fp16_groups
        self.sizes = [sum(_part(parameter) for parameter in group) for group in self._groups]
        self._stay_fetched(optimizer)

    def gradients(self) -> torch.Tensor:
        """As `_Flat.gradients`."""
        pieces = []
        for group in self._groups:
            for grad, part in _taken(group, [_part(parameter) for parameter in group]):
                extra = part * self._processes - len(grad)
                pieces.append((pad(grad, (0, extra)) if extra else grad).view(self._processes, part))
        return torch.cat(pieces, dim=1)

    def _stay_fetched(self, optimizer: Any) -> None:
        """Keep what is trained whole in every process between steps; only the base comes and goes."""
        parameters = [parameter for group in self._groups for parameter in group]
        for parameter in parameters:
            parameter.ds_persist = True
        parameters[0].all_gather(parameters)
        # Before a step DeepSpeed frees all parameters and fetches those that stay again. What has not been updated, it
        # need not, and what has been is exchanged by `fetch_updated`.
        passing = _Passing(optimizer.module)
        optimizer._partition_all_parameters = lambda: optimizer._get_param_coordinator().release_and_reset_all(passing)
        optimizer.persistent_parameters = []

    @torch.no_grad()
    def fetch_updated(self, group: Any) -> None:
        """Exchange the updated shares, and put the whole parameters together again."""
        share = torch.cat(self._flat) if len(self._flat) > 1 else self._flat[0]
        rows = share.new_empty(self._processes, len(share))
        gather_shares(rows, share, group)
        parameters = [parameter for group in self._groups for parameter in group]
        parts = rows.split([_part(parameter) for parameter in parameters], dim=1)
        targets, sources = [], []
        for parameter, part in zip(parameters, parts, strict=True):
            if parameter.numel() != parameter.ds_numel:
                continue  # freed by a checkpoint, or by DeepSpeed's first pass: it comes with its block, and stays
            whole = parameter.data.view(-1)
            even = part.numel() == whole.numel()
            targets.append(whole.view_as(part) if even else whole)
            sources.append(part if even else part.reshape(-1)[: whole.numel()])
        if targets:
            torch._foreach_copy_(targets, sources)


class _Passing:
    """The parameters of a module that are fetched for the time of their use, as DeepSpeed asks a module for them."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._parameters = [(name, item) for name, item in module.named_parameters() if not item.ds_persist]

    def named_parameters(self, recurse: bool = True) -> list[tuple[str, torch.nn.Parameter]]:
        return self._parameters

    def ds_external_parameters(self) -> tuple[()]:
        return ()


def _part(parameter: Any) -> int:
    return int(parameter.partition_numel())


def _taken(group: Sequence[torch.nn.Parameter], notes: Sequence[int]) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield the gradient of each parameter, flat and zero if it has none, with its note; parameters lose theirs."""
    for parameter, note in zip(group, notes, strict=True):
        grad, parameter.grad = parameter.grad, None
        if grad is None:
            grad = torch.zeros(getattr(parameter, "ds_numel", parameter.numel()), device=parameter.device)
        yield grad.reshape(-1), note
