"""Models that processes split, trained as one process trains them, to the last bit."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
from torch import nn

from dual_lora.distributed import ordered_reduce, sharding
from tests.split_llama import adapted, assert_equal, in_group, make_base, split, tokens


def train(model: nn.Module, processes: range, steps: range, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train a model that holds all its weights on the micro-batches of all processes; return the optimizer's state."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    if state is not None:
        optimizer.load_state_dict(state)
    for step in steps:
        for process in processes:
            batch = tokens(10 * step + process)
            (model(batch, labels=batch).loss / len(processes)).backward()
        sharding.clip_together(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer.state_dict()


def train_split(model: nn.Module, steps: range, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """As `train`, with one micro-batch a process."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    if any(map(sharding.is_shard, trained)):
        sharding.reduce_in_order(model)
    if state is not None:
        sharding.load_whole_state(optimizer, state)
    for step in steps:
        batch = tokens(10 * step + dist.get_rank())
        model(batch, labels=batch).loss.backward()
        sharding.average_gradients(trained)
        sharding.clip_together(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return sharding.whole_state(optimizer)


def full_and_adapter(_: Path) -> None:
    everyone = range(dist.get_world_size())
    for tied in (False, True):
        alone, ours = make_base(tied), split(make_base(tied))
        train(alone, everyone, range(3))
        train_split(ours, range(3))
        assert_equal(sharding.whole_weights(ours, here=True), dict(alone.state_dict()))
    for name in ("dora", "relative"):
        alone, ours = adapted(make_base(), name), adapted(split(make_base()), name)
        train(alone, everyone, range(3))
        train_split(ours, range(3))
        assert_equal(sharding.whole_weights(ours, here=True), dict(alone.state_dict()))


def test_four_processes_train_as_one_to_the_last_bit(tmp_path: Path) -> None:
    """Everything trained (shards' gradients, tied embeddings' whole ones) and adapters; clipped at every step."""
    in_group(4, full_and_adapter, tmp_path)


def continues(folder: Path) -> None:
    """Two processes write, one continues, and the other way round; against one process that never stopped."""
    both = range(2)
    straight, ours = make_base(), split(make_base())
    train(straight, both, range(4))
    states = [train_split(ours, range(2))]
    weights = [sharding.whole_weights(ours, here=True)]
    resumed = make_base()
    resumed.load_state_dict(weights[0])
    train(resumed, both, range(2, 4), states[0])
    assert_equal(dict(resumed.state_dict()), dict(straight.state_dict()))
    first = make_base()
    state = train(first, both, range(2))
    again = split(make_base())
    for name, parameter in again.named_parameters():
        sharding.write(parameter, first.state_dict()[name])
    after = train_split(again, range(2, 4), state)
    assert_equal(sharding.whole_weights(again, here=True), dict(straight.state_dict()))
    shapes = [parameter.shape for parameter in straight.parameters()]
    assert [after["state"][number]["exp_avg"].shape for number in range(len(shapes))] == shapes


def test_another_number_of_processes_continues_full_fine_tuning(tmp_path: Path) -> None:
    in_group(2, continues, tmp_path)


class Counted:
    """torch's interface `AllGather`: gathers, and counts."""

    def __init__(self) -> None:
        self.times = 0

    def allocate(self, size: list[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool) -> None:
        self.times += 1
        ordered_reduce.all_gather(output_tensor.view(dist.get_world_size(), -1), input_tensor, group)


def gathered(_: Path) -> None:
    """Two blocks once for each pass; the output layer is kept, and the backward pass of embeddings reads no weight."""
    for method, checkpointing in itertools.product([None, "lora"], [False, True]):
        base = split(make_base())
        model = base if method is None else adapted(base, method)
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        counts = {unit: Counted() for unit in sharding.units(base)}
        for unit, count in counts.items():
            unit.set_custom_all_gather(count)
        for _ in range(2):
            model(tokens(0), labels=tokens(0)).loss.backward()
            found = {type(unit).__name__: count.times for unit, count in counts.items()}
            first, *others = base.model.layers  # the first is gathered with the second, by what was set last
            for unit, count in counts.items():
                times = 0 if unit is first else 2 if unit in others else 1
                assert count.times == times, (method, checkpointing, found)
            with torch.no_grad():
                model(tokens(0))
            for count in counts.values():
                count.times = 0


def test_weights_are_gathered_no_more_than_they_are_read(tmp_path: Path) -> None:
    in_group(2, gathered, tmp_path)
