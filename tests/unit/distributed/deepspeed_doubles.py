"""DeepSpeed's engine and optimizers, as far as they are replaced: for tests without processes or files."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from dual_lora.distributed import deepspeed_engine

PROCESSES = 2


class Hook:
    removed = False

    def remove(self) -> None:
        self.removed = True


def engine_of(optimizer: SimpleNamespace, parameters: list[torch.nn.Parameter]) -> SimpleNamespace:
    engine = SimpleNamespace(module=torch.nn.ParameterList(parameters), optimizer=optimizer, boundary=True)
    engine.device = torch.device("cpu")
    engine.is_gradient_accumulation_boundary = lambda: engine.boundary
    engine.allreduce_gradients = optimizer.unscale_and_clip_grads = None  # DeepSpeed's own
    return engine


def stage_two(*groups: list[torch.nn.Parameter], **attributes: object) -> SimpleNamespace:
    """An engine made lighter. Each group lies in a buffer, with a gap of one element between two parameters."""
    size = [(sum(item.numel() for item in group) + 2) // 2 for group in groups]
    optimizer = SimpleNamespace(
        dp_process_group=None,
        cpu_offload=False,
        clip_grad=0.0,
        step=lambda: None,
        _grad_acc_hooks=[Hook()],
        _update_model_bit16_weights=lambda group: None,
        averaged_gradients={},
        round_robin_bit16_groups=groups,
        round_robin_bit16_padding=[[0] * (len(group) - 2) + [1, 0][-len(group) :] for group in groups],
        partition_size=size,
    )
    vars(optimizer).update(attributes)
    engine = engine_of(optimizer, [item for group in groups for item in group])
    deepspeed_engine.lighten(engine, PROCESSES, 2)
    return engine


def parameter(*values: float) -> torch.nn.Parameter:
    """One whose gradient is `values`; none without."""
    made = torch.nn.Parameter(torch.zeros(max(len(values), 1)))
    made.grad = torch.tensor(values) if values else None
    return made


class Cut(torch.nn.Parameter):
    """A parameter as ZeRO-3 cuts it into as many parts as there are processes, fetched or not."""

    ds_persist, ds_id = False, 0

    def partition_numel(self) -> int:
        return -(-self.ds_numel // PROCESSES)

    def all_gather(self, parameters: list[Cut]) -> None:
        for item in parameters:
            item.data = torch.zeros(item.ds_shape)


def cut(*shape: int) -> Cut:
    made = Cut(torch.zeros(0))
    made.ds_shape, made.ds_numel = shape, torch.Size(shape).numel()
    return made


def stage_three(module: torch.nn.Module, *groups: list[Cut], **attributes: object) -> SimpleNamespace:
    """An engine made lighter that trains `groups`, parts of the module's parameters."""
    coordinator = SimpleNamespace(release_and_reset_all=lambda module: None)
    optimizer = SimpleNamespace(
        dp_process_group=None,
        offload_optimizer=False,
        clip_grad=0.0,
        step=lambda: None,
        _grad_acc_hooks=[],
        _leaf_module_hooks=[Hook()],
        averaged_gradients={},
        module=module,
        fp16_groups=list(groups),
        fp16_partitioned_groups_flat=[torch.zeros(sum(map(Cut.partition_numel, group))) for group in groups],
        _get_param_coordinator=lambda: coordinator,
    )
    vars(optimizer).update(attributes)
    engine = engine_of(optimizer, list(module.parameters()))
    deepspeed_engine.lighten(engine, PROCESSES, 3)
    return engine
