"""What makes DeepSpeed's engine fast for adapters: many small trained tensors among few large frozen ones.

DeepSpeed is written for models trained whole: its hooks sit on every module and it visits every parameter. An adapter
multiplies both, so most of a step under ZeRO would be host time. Nothing here changes what is computed, but for the
order in which squares of gradients are summed. `scripts/bench_zero.py` and `scripts/bench_scaling.py` time steps.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from dual_lora.training.gradient_sums import clip, squared_norm, sum_in_order


def lighten(engine: Any, world_size: int, stage: int) -> None:
    """Spare an engine the work that takes a launch or a visit per parameter, frozen ones included, and changes nothing.

    Only what is trained has gradients to drop. Under stage 0 clipping is torch's, a few kernels for all gradients
    together, and one process has nothing to sum.
    """
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]

    def drop_gradients() -> None:
        for parameter in trained:
            parameter.grad = None

    engine.zero_grad = drop_gradients
    if stage == 3:
        announce_factors(engine.module)
    if stage in (1, 2):
        if not engine.optimizer.cpu_offload:
            _clip_without_waiting(engine.optimizer)
        _bind_once(engine.optimizer)
        _add_up_in_order(engine.optimizer, engine.optimizer.dp_process_group, world_size)
    if stage == 0:
        engine.clip_fp32_gradients = lambda: clip(trained, engine.gradient_clipping())
        if world_size == 1:
            engine.enable_backward_allreduce = False
        else:
            _add_up_in_order(engine, engine.seq_data_parallel_group, world_size)


def _clip_without_waiting(optimizer: Any) -> None:
    """Take the norm of all processes' gradients in a few kernels, and clip by it as torch does.

    DeepSpeed converts each gradient for a norm of its own, and waits for the GPU to see whether the norm is finite; a
    step is skipped then. Here it stays on the device, and as in any other run the loss that follows is not finite.
    """
    optimizer.compute_grad_norm = False

    def scale(flat: list[torch.Tensor], _: Any) -> None:
        if optimizer._global_grad_norm is None:  # the first group of a step; the others still have theirs in pieces
            others = [piece for pieces in optimizer.averaged_gradients.values() for piece in pieces or ()]
            squares = squared_norm([*flat, *others])
            torch.distributed.all_reduce(squares, group=optimizer.dp_process_group)
            optimizer._global_grad_norm = squares.sqrt().float()
        if optimizer.clip_grad > 0:
            factor = (optimizer.clip_grad / (optimizer._global_grad_norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(flat, factor)

    optimizer.unscale_and_clip_grads = scale


def _add_up_in_order(owner: Any, group: Any, world_size: int) -> None:
    """Add gradients up as `gradient_sums` does. owner: the engine (stage 0) or the optimizer (1 and 2).

    The optimizer has divided some of them already, and then says `divide=False`.
    """

    def mean(bucket: list[torch.Tensor], *_: Any, divide: bool = True, **__: Any) -> torch.Tensor:
        flat = owner.flatten(bucket)
        return sum_in_order(flat.div_(world_size) if divide else flat, group)

    def mean_in_place(bucket: list[torch.Tensor], *_: Any, divide: bool = True, **__: Any) -> None:
        torch._foreach_copy_(bucket, owner.unflatten(mean(bucket, divide=divide), bucket))

    owner.allreduce_bucket, owner.allreduce_and_copy = mean, mean_in_place


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
