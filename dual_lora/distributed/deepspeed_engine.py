"""What makes DeepSpeed's engine fast for adapters: many small trained tensors among few large frozen ones.

DeepSpeed is written for models trained whole: its hooks sit on every module and it visits every parameter. An adapter
multiplies both, so most of a step under ZeRO would be host time. Nothing here changes what is computed, but for the
order of sums (`ordered_sums`) and what becomes of a step whose gradients are not finite (`deepspeed_steps`). Steps are
timed by `run.py bench group-steps` without GPUs, by `bench zero` on one and by `bench scaling` on several.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.modeling_layers import GradientCheckpointingLayer

from dual_lora.distributed.deepspeed_steps import OnceAStep, suits
from dual_lora.distributed.ordered_sums import clip, sum_in_order

AHEAD = 3  # blocks, a guess: the GPU has two to work on while the host asks for the next


def lighten(engine: Any, world_size: int, stage: int) -> None:
    """Spare an engine the work that takes a launch or a visit per parameter, frozen ones included, and changes nothing.

    Only what is trained has gradients to drop. Under stage 0 clipping is torch's, a few kernels for all gradients
    together, and one process has nothing to sum. To be called before the engine's first backward pass.
    """
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]

    def drop_gradients() -> None:
        for parameter in trained:
            parameter.grad = None

    engine.zero_grad = drop_gradients
    if stage == 0:
        engine.clip_fp32_gradients = lambda: clip(trained, engine.gradient_clipping())
        if world_size == 1:
            engine.enable_backward_allreduce = False
        else:
            _add_up_in_order(engine, world_size)
        return
    if stage == 3:
        announce_factors(engine.module)
        _keep_what_is_needed()
        _list_parameters_once()
        if engine.device.type == "cuda":
            _stay_near(engine.optimizer.parameter_offload.get_param_coordinator())
    else:
        _bind_once(engine.optimizer)
    offload = engine.optimizer.offload_optimizer if stage == 3 else engine.optimizer.cpu_offload
    if suits(sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained), offload):
        OnceAStep(engine, world_size, stage)


def _add_up_in_order(engine: Any, world_size: int) -> None:
    """Add gradients up as `ordered_sums` does."""

    def mean(bucket: list[torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        return sum_in_order(engine.flatten(bucket).div_(world_size), engine.seq_data_parallel_group)

    engine.allreduce_bucket = mean


def _stay_near(coordinator: Any) -> None:
    """Let the host fetch a block under ZeRO-3 only once the GPU is at most `AHEAD` blocks behind.

    A block takes memory from when the host asks for it until the GPU has done with it. Nothing else stops a host that
    is faster than its GPU from asking for the whole model, several times over.
    """
    from deepspeed.utils import z3_leaf_module

    fetch, begun = coordinator.fetch_sub_module, deque[torch.cuda.Event]()

    def fetch_when_near(module: torch.nn.Module, forward: bool) -> None:
        fetch(module, forward=forward)
        if z3_leaf_module(module):
            begun.append(torch.cuda.Event())
            begun[-1].record()
            if len(begun) > AHEAD:
                begun.popleft().synchronize()

    coordinator.fetch_sub_module = fetch_when_near


def _keep_what_is_needed() -> None:
    """Let products keep for the backward pass what torch's linear function keeps, but no memory of fetched weights.

    Under ZeRO-3 DeepSpeed's own takes its place, since torch's would keep the memory in which a parameter is whole for
    the time being. It is made for training whole models in their own dtype: it keeps the input, which the gradient of a
    frozen weight would need, and input and weight as they come, where torch keeps what autocast has made of them, half
    as large. LLaMA-7B with LoRA would keep 10 GiB more at 4,096 tokens (counted).
    """
    from deepspeed.runtime.zero import linear as replacement
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Patched

    if torch.nn.functional.linear is replacement.zero3_linear_wrap:
        own, torchs = torch.nn.functional.linear, Patched.linear_bk

        def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            if not hasattr(weight, "ds_id") or weight.ds_persist:  # whole at all times, as what an adapter trains
                return torchs(x, weight, bias)
            trained = weight.requires_grad or (bias is not None and bias.requires_grad)
            if trained or not hasattr(weight, "ds_z3_leaf_module"):
                return own(x, weight, bias)
            return _FrozenLinear.apply(x, weight, bias, torchs)

        torch.nn.functional.linear = linear  # as DeepSpeed sets its own: for good


class _FrozenLinear(torch.autograd.Function):
    """x Wᵀ + b with a frozen weight that its block fetches: keeps the parameter, which is whole whenever it is read.

    x (..., in), weight (out, in), bias (out,) or None; returns (..., out) in the dtype that torch's function gives.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, linear: Any) -> Any:
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        [weight] = ctx.saved_tensors
        return grad.matmul(weight.to(grad.dtype)), None, None, None


def _list_parameters_once() -> None:
    """Let DeepSpeed remember the parameters of each block, instead of asking all its modules at every fetch."""
    from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator
    from deepspeed.utils import z3_leaf_module

    find = coordinator.iter_params
    if find.__module__ == __name__:  # since an earlier run of this process
        return

    def remembered(module: Any, recurse: bool = False) -> Iterable[torch.nn.Parameter]:
        if not recurse or not z3_leaf_module(module):
            return find(module, recurse)
        if "listed_parameters" not in vars(module):
            module.listed_parameters = list(module.parameters())
        return chain(module.listed_parameters, (parameter for _, parameter in module.ds_external_parameters()))

    coordinator.iter_params = remembered


def _bind_once(optimizer: Any) -> None:
    """Point parameters into the buffer that processes gather only when one of the two has moved.

    DeepSpeed makes new views for all of them after every step, though they are there already.
    """
    bind = optimizer._update_model_bit16_weights
    bound: dict[int, list[int]] = {}

    def places(group: int) -> list[int]:
        tensors = [optimizer.bit16_groups_flat[group], *optimizer.bit16_groups[group]]
        return [tensor.data_ptr() for tensor in tensors]

    def bind_what_moved(group: int) -> None:
        if bound.get(group) != places(group):
            bind(group)
            bound[group] = places(group)

    optimizer._update_model_bit16_weights = bind_what_moved


def fetch_whole_blocks(model: torch.nn.Module) -> int:
    """Make ZeRO-3 fetch and free each transformer block as one; return the elements of the largest, 0 without any.

    Its hooks otherwise sit on each of a block's modules, several of them in every adapted layer, and each fetches its
    one or two tensors. To be called before DeepSpeed prepares the model. A block's gradients are then handed over once
    its input has got its own, so the input of one that trains anything asks for a gradient, as with checkpointing.
    """
    from deepspeed.utils import set_z3_leaf_module

    largest = 0
    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            set_z3_leaf_module(block, True)
            parameters = list(block.parameters())
            largest = max(largest, sum(getattr(item, "ds_numel", item.numel()) for item in parameters))
            if any(item.requires_grad for item in parameters):
                block.register_forward_pre_hook(_input_with_gradient)
    return largest


def _input_with_gradient(block: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    if torch.is_grad_enabled() and inputs and torch.is_tensor(inputs[0]) and not inputs[0].requires_grad:
        inputs[0].requires_grad_(True)


def announce_factors(model: torch.nn.Module) -> None:
    """Tell ZeRO-3 which modules read parameters that lie in a `ParameterDict`, which is never called itself.

    DeepSpeed notices by itself, but not before one is read while it is away. By then the order in which it fetches
    parameters is recorded without them, and the next pass ends in its "tracing error": so did evaluations in several
    batches after a resume.
    """
    import deepspeed

    for module in model.modules():
        for child in module.children():
            if isinstance(child, torch.nn.ParameterDict):
                for parameter in child.values():
                    if hasattr(parameter, "ds_id"):
                        deepspeed.zero.register_external_parameter(module, parameter)
