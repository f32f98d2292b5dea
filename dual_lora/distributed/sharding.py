"""Weights split over the processes of a run by torch's `fully_shard`: blocks are whole only while they compute.

    shard(model, "cuda")                 # the base: every process keeps its rows of each weight
    with whole_while_adapted():
        model = get_peft_model(model, config)
    average_gradients(trained)           # after the last backward pass of an optimizer step
    clip_together(trained, 1.0)

The base is sharded before a method is applied to it, so what the method adds is whole in every process: an adapter has
hundreds of small tensors, which are cheaper to keep than to send. Their gradients are summed once a step. What the base
itself trains (full fine-tuning, biases) stays sharded; torch sums those gradients block by block in the backward pass.
Sums are in the order of the ranks (`ordered_reduce`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from dual_lora.config import ConfigError
from dual_lora.distributed.ordered_reduce import ordered_all_reduce, ordered_reduce_scatter, squared_norm

# A unit's hooks take the host about a millisecond a step, and the faster process waits at each for the slower one, with
# a kernel that takes multiprocessors. Two blocks halve both, and one more block is whole at a time.
BLOCKS_OF_A_UNIT = 2


def shard(model: PreTrainedModel, device: str) -> None:
    """Split the weights of a loaded model over the processes, in place, along the rows of each tensor.

    Two blocks, embeddings, the output layer and what else the stack of blocks has are one unit each: gathered for a
    forward or backward pass, freed after it. A task head is trained, and embeddings that are tied to the output layer
    are read by two units: both stay whole in every process.

    device: "cuda" or "cpu", where the model computes. Parameters on the meta device stay there: `models.shards` fills
    them. Raises `ConfigError` for quantized weights, whose rows cannot be cut apart.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise ConfigError(
                f"launch=fsdp splits floating-point weights, and {name} is {parameter.dtype} (a quantized base); use "
                "launch=torchrun, or an unquantized checkpoint"
            )
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    stack, embeddings, output = model.base_model, model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is not None and output.weight is embeddings.weight
    blocks = _blocks(model)
    for first in range(0, len(blocks), BLOCKS_OF_A_UNIT):
        fully_shard(blocks[first : first + BLOCKS_OF_A_UNIT], mesh=mesh)
    if not tied:
        # Its backward pass reads no weight.
        fully_shard(embeddings, mesh=mesh).set_unshard_in_backward(False)
        if output is not None:
            # Its backward pass begins when its forward pass has ended.
            fully_shard(output, mesh=mesh, reshard_after_forward=False)
    fully_shard(stack, mesh=mesh, ignored_params={embeddings.weight} if tied else set())
    for unit in units(model):
        if unit not in blocks:  # torch frees those itself, when the last of a unit has run
            # Whoever saves a checkpoint frees them too, and that may be one process alone.
            unit.register_forward_hook(_free_if_no_backward_pass_follows)
    # NCCL's allocator belongs to its communicator, which the first collective makes.
    dist.all_reduce(torch.zeros(1, device=mesh.device_type), group=mesh.get_group())
    gather_into(model, "group")
    for block in blocks:
        for module in block.modules():
            module.whole_while_its_block_computes = True  # read by `tuner.base_weight`


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def units(model: nn.Module) -> list[FSDPModule]:
    """Return the parts of a sharded model that are gathered one at a time, by each of their modules; else none.

    What is set for one of a unit's blocks is set for the unit.
    """
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def is_shard(tensor: torch.Tensor) -> bool:
    """Return whether a process holds only its rows of the tensor."""
    return isinstance(tensor, DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` has split the model."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def gather_into(model: nn.Module, memory: Literal["group", "torch"]) -> None:
    """Choose the memory in which weights are gathered: the group's, which NCCL need not copy, or torch's."""
    for unit in units(model):
        unit.set_allocate_memory_from_process_group_for_comm(memory == "group")


def reduce_in_order(model: nn.Module) -> None:
    """Let torch add up the gradients of sharded weights in the order of the ranks; to be called before they are."""
    if dist.get_world_size() <= 2:  # two numbers have one sum
        return
    gather_into(model, "torch")  # torch allows one of the two
    for unit in units(model):
        unit.set_custom_reduce_scatter(_OrderedReduceScatter())


def _free_if_no_backward_pass_follows(unit: Any, *_: Any) -> None:
    if not torch.is_grad_enabled():
        unit.reshard()


def own_slice(tensor: torch.Tensor) -> slice:
    """Return which rows of a whole tensor this process keeps; `fully_shard` cuts as `torch.chunk` does."""
    rows, process = len(tensor), dist.get_rank()
    size = math.ceil(rows / dist.get_world_size())
    return slice(min(process * size, rows), min((process + 1) * size, rows))


# ---------------------------------------------------------------- whole weights


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with all its rows. Collective for a sharded one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module, *, here: bool) -> dict[str, torch.Tensor]:
    """Return a state dict of whole tensors on the host where `here` is set, an empty one elsewhere. Collective."""
    state = {}
    for name, tensor in model.state_dict().items():
        gathered = whole(tensor)  # one at a time: the model as a whole may fit no device
        if here:
            state[name] = gathered.cpu()
    return state


def own(tensor: torch.Tensor) -> torch.Tensor:
    """Return the rows that this process holds; they share the tensor's memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def write(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Copy `values` (whole, equal in all processes) into a parameter; a sharded one takes its rows."""
    write_own(parameter, values[own_slice(parameter)] if is_shard(parameter) else values)


@torch.no_grad()
def write_own(parameter: torch.Tensor, rows: torch.Tensor) -> None:
    """Copy the rows that this process holds into a parameter."""
    own(parameter).copy_(rows)


@contextmanager
def whole_inside(layer: nn.Module) -> Iterator[None]:
    """Let a layer's own weights be whole in every process; afterwards their shards hold what was written to them."""
    held = {name: item for name, item in layer.named_parameters(recurse=False) if isinstance(item, DTensor)}
    for name, item in held.items():
        setattr(layer, name, nn.Parameter(whole(item.detach()), requires_grad=item.requires_grad))
    try:
        yield
    finally:
        for name, item in held.items():
            now = layer.get_parameter(name)
            write(item, now.detach())
            setattr(layer, name, item.requires_grad_(now.requires_grad))


@contextmanager
def whole_while_adapted() -> Iterator[None]:
    """Let each base layer have whole weights while PEFT makes its adapter: some start from them, PiSSA changes them."""
    with ExitStack() as stack:

        def gather(module: nn.Module, name: str, layer: Any) -> None:
            if name == "base_layer":
                stack.close()  # PEFT makes one layer's adapter after the other
                stack.enter_context(whole_inside(layer))

        handle = register_module_module_registration_hook(gather)
        try:
            yield
        finally:
            handle.remove()


# ---------------------------------------------------------------- an optimizer's state


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state dict with whole tensors on the host, as one process has it. Collective."""
    held = optimizer.state_dict()
    state = {
        number: {name: whole(item).cpu() if torch.is_tensor(item) else item for name, item in values.items()}
        for number, values in held["state"].items()
    }
    return {**held, "state": state}


def load_whole_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `whole_state` returned; any number of processes may have written it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    cut = {
        number: {name: _shard_like(parameters[number], item) for name, item in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": cut})


def _shard_like(parameter: nn.Parameter, item: Any) -> Any:
    """Return this process's rows of a tensor of the parameter's shape, on its device; anything else as it is."""
    if not isinstance(parameter, DTensor) or not torch.is_tensor(item) or item.shape != parameter.shape:
        return item
    return rows_as(parameter, item[own_slice(item)].to(parameter.device))


def rows_as(parameter: DTensor, rows: torch.Tensor) -> DTensor:
    """Return a tensor of the parameter's shape and placement, of which this process holds `rows`."""
    return DTensor.from_local(
        rows,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


# ---------------------------------------------------------------- gradients


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients of whole parameters by their mean over the processes; sharded ones are torch's.

    A parameter without a gradient has none in any process.
    """
    kinds: dict[torch.dtype, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            kinds[parameter.grad.dtype].append(parameter)
    for kind in kinds.values():
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in kind if parameter.grad is not None])
        ordered_all_reduce(flat.div_(dist.get_world_size()))
        for parameter, mean in zip(kind, flat.split([parameter.numel() for parameter in kind]), strict=True):
            parameter.grad = mean.view_as(parameter)


@torch.no_grad()
def clip_together(parameters: Sequence[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale gradients, whole and sharded ones, so that their norm together is at most `largest`; return what it was."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    plain = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    squares = squared_norm(plain)
    if sharded:
        elsewhere = squared_norm(sharded)
        dist.all_reduce(elsewhere)
        squares = squares.to(elsewhere.device) + elsewhere
    norm = squares.sqrt().float()
    if math.isfinite(largest):
        torch._foreach_mul_([*plain, *sharded], (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


class _OrderedReduceScatter:
    """torch's interface `ReduceScatter` for more than two processes: rows are added up in the order of the ranks."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        processes = dist.get_world_size(group)
        rows = input_tensor.view(processes, -1)
        output_tensor.copy_(ordered_reduce_scatter(rows.div_(processes) if op == dist.ReduceOp.AVG else rows, group))
