"""Four processes add gradients up as one process adds its micro-batches, to the last bit."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from dual_lora.distributed.ordered_reduce import (
    all_gather,
    clip,
    ordered_all_reduce,
    ordered_reduce_scatter,
    register_ordered_hook,
    squared_norm,
)

PROCESSES = 4


def one_after_the_other(tensors: list[torch.Tensor]) -> torch.Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def vectors(length: int) -> list[torch.Tensor]:
    """Return what each process has, of very different sizes, so that the order shows."""
    draw = torch.Generator().manual_seed(length)
    return [torch.randn(length, generator=draw) * 10.0**place for place in range(PROCESSES)]


def check_sums() -> None:
    """Lengths that processes divide and that they do not, fewer elements than processes included."""
    for length in (1, 3, 4, 1000, 1001):
        given = vectors(length)
        expected = one_after_the_other(given)
        found = ordered_all_reduce(given[dist.get_rank()].clone())
        assert torch.equal(found, expected), (length, found, expected)
    assert not torch.equal(expected, one_after_the_other(given[::-1])), "the order would not show"


def check_data_parallel() -> None:
    """DDP with several buckets, against one process that accumulates."""
    torch.manual_seed(0)
    own, ours = (torch.nn.Sequential(*[torch.nn.Linear(37, 37) for _ in range(6)]) for _ in range(2))
    ours.load_state_dict(own.state_dict())
    wrapped = torch.nn.parallel.DistributedDataParallel(ours, bucket_cap_mb=0.01)
    register_ordered_hook(wrapped)
    batches = [vector.view(1, 37) for vector in vectors(37)]
    for _ in range(2):
        for batch in batches:
            (own(batch).square().mean() / PROCESSES).backward()
        wrapped(batches[dist.get_rank()]).square().mean().backward()
        for expected, found in zip(own.parameters(), ours.parameters(), strict=True):
            assert torch.equal(found.grad, expected.grad)
            expected.grad = found.grad = None


def check_shares() -> None:
    """Each process sums its row alone, and gets all of them back."""
    given = vectors(5 * PROCESSES)
    expected = one_after_the_other(given)
    rank = dist.get_rank()
    share = ordered_reduce_scatter(given[rank].view(PROCESSES, 5).clone())
    assert torch.equal(share, expected[5 * rank : 5 * rank + 5])
    rows = torch.empty(PROCESSES, 5)
    all_gather(rows, share)
    assert torch.equal(rows.view(-1), expected)


def check_all(rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    check_sums()
    check_shares()
    check_data_parallel()
    dist.destroy_process_group()


def test_four_processes_add_up_as_one(tmp_path: Path):
    """Forked: four interpreters that import torch take four times as long as what they compute."""
    meeting = f"file://{tmp_path / 'meeting'}"
    torch.multiprocessing.start_processes(check_all, (meeting,), nprocs=PROCESSES, start_method="fork")


def test_one_process_has_the_whole_sum():
    assert ordered_reduce_scatter(torch.tensor([[1.0, 2.0]])).tolist() == [1.0, 2.0]


def test_the_norm_does_not_depend_on_how_gradients_are_split():
    draw = torch.Generator().manual_seed(0)
    gradients = [torch.randn(1000, generator=draw) for _ in range(50)]
    flat = torch.cat(gradients)
    whole = squared_norm(gradients).sqrt().float()
    for processes in (2, 3, 8):
        shares = [squared_norm([part]) for part in flat.chunk(processes)]
        assert torch.stack(shares).sum().sqrt().float() == whole
    assert squared_norm([]) == 0.0


def test_clipping_is_torchs():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for parameter, values in zip(parameters, ([3.0, 0.0], [0.0, 4.0]), strict=False):  # the last has no gradient
        parameter.grad = torch.tensor(values)
    assert clip(parameters, 1.0) == 5.0
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.0, 0.8]))
    assert clip(parameters, 2.0).item() < 1.0 + 1e-6
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.0, 0.8]))
