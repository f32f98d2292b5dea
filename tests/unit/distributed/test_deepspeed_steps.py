"""Steps made at once, without an engine; tests/invariants has them at work in DeepSpeed's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dual_lora.distributed import deepspeed_steps
from tests.unit.distributed.deepspeed_doubles import PROCESSES, cut, parameter, stage_three, stage_two

RANK = 1


@pytest.fixture(autouse=True)
def two_processes_with_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over the processes without any: this is the second of two."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: tensor.mul_(PROCESSES))
    monkeypatch.setattr(deepspeed_steps, "sum_own_share", lambda rows, group: rows[RANK] * PROCESSES)


def test_each_process_gets_its_part_of_every_buffer():
    first, second = [parameter(1.0, 2.0), parameter(3.0, 4.0)], [parameter(5.0, 6.0, 7.0)]
    engine = stage_two(first, second)
    assert engine.optimizer._grad_acc_hooks[0].removed, "DeepSpeed would take each gradient as well"
    engine.allreduce_gradients()
    found = engine.optimizer.averaged_gradients
    # The buffers are 1 2 _ 3 4 _ and 5 6 7 _, and the second process has the second half of each.
    assert {group: shares[0].tolist() for group, shares in found.items()} == {0: [3.0, 4.0, 0.0], 1: [7.0, 0.0]}
    assert all(item.grad is None for item in (*first, *second))


def test_what_has_no_gradient_is_not_changed():
    engine = stage_two([parameter(1.0, 2.0), parameter()])
    engine.allreduce_gradients()
    assert engine.optimizer.averaged_gradients[0][0].tolist() == [0.0, 0.0]


def test_gradients_are_left_alone_until_the_last_micro_batch():
    item = parameter(1.0, 2.0)
    engine = stage_two([item])
    engine.boundary = False
    engine.allreduce_gradients()
    assert item.grad.tolist() == [1.0, 2.0]
    assert engine.optimizer.averaged_gradients == {}


@pytest.mark.parametrize(("clip", "share"), [(0.0, [6.0, 8.0]), (100.0, [6.0, 8.0]), (1.0, [0.6, 0.8])])
def test_the_norm_is_of_all_gradients_of_all_processes_and_clips_every_group(clip, share):
    """Processes are alike, so both halves are 3 4 0 and 5 0; the squares of all add up to 100."""
    engine = stage_two([parameter(0.0, 0.0), parameter(3.0, 4.0)], [parameter(0.0, 0.0, 5.0)], clip_grad=clip)
    engine.allreduce_gradients()
    engine.optimizer.step()
    assert engine.optimizer._global_grad_norm.item() == pytest.approx(10.0)
    scale = min(1.0, clip / 10.0) if clip else 1.0
    shares = [value.tolist() for [value] in engine.optimizer.averaged_gradients.values()]
    assert shares == [pytest.approx([3.0 * scale, 4.0 * scale, 0.0]), pytest.approx([5.0 * scale, 0.0])]
    flat = torch.ones(2)
    engine.optimizer.unscale_and_clip_grads([flat], None)
    assert flat.tolist() == [1.0, 1.0], "clipped twice"


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite_is_told_and_spoils_the_step(value):
    engine = stage_two([parameter(0.0, 0.0, 1.0, value)], clip_grad=1.0)
    engine.allreduce_gradients()
    engine.optimizer.step()
    assert not engine.optimizer._global_grad_norm.isfinite()
    assert engine.optimizer.averaged_gradients[0][0].isnan().any()


@pytest.mark.parametrize("why", ["offloaded", "too many elements"])
def test_large_and_offloaded_gradients_are_deepspeeds(why, monkeypatch):
    """It sends those away while the backward pass goes on."""
    monkeypatch.setattr(deepspeed_steps, "AT_MOST", 1 if why == "too many elements" else 2)
    engine = stage_two([parameter(1.0, 2.0)], cpu_offload=why == "offloaded")
    assert engine.allreduce_gradients is None
    assert engine.optimizer.unscale_and_clip_grads is None
    assert not engine.optimizer._grad_acc_hooks[0].removed


def test_under_stage_three_whole_parameters_are_put_together_of_all_shares(monkeypatch):
    matrix, odd, freed = cut(2, 2), cut(3), cut(2)
    share = torch.tensor([30.0, 40.0, 70.0, 0.0, 90.0])  # of the second process: 2 of 4, the last of 3, 1 of 2
    module, flat = torch.nn.ParameterList([matrix, odd, freed]), [share[:4], share[4:]]
    engine = stage_three(module, [matrix, odd], [freed], fp16_partitioned_groups_flat=flat)
    optimizer = engine.optimizer
    assert optimizer._leaf_module_hooks[0].removed
    assert all(item.ds_persist and item.numel() for item in (matrix, odd, freed)), "fetched once, and kept"

    matrix.grad, odd.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0, 7.0])
    engine.allreduce_gradients()
    found = {group: shares[0].tolist() for group, shares in optimizer.averaged_gradients.items()}
    assert found == {0: [3.0, 4.0, 7.0, 0.0], 1: [0.0]}

    def gather(rows: torch.Tensor, own: torch.Tensor, group: object) -> None:
        assert torch.equal(own, share)
        rows[0], rows[1] = torch.tensor([10.0, 20.0, 50.0, 60.0, 80.0]), own

    monkeypatch.setattr(deepspeed_steps, "gather_shares", gather)
    freed.data = torch.zeros(0)  # as after a checkpoint
    optimizer.step()
    assert matrix.tolist() == [[10.0, 20.0], [30.0, 40.0]]
    assert odd.tolist() == [50.0, 60.0, 70.0]
    assert freed.numel() == 0
    matrix.data = odd.data = torch.zeros(0)  # as after DeepSpeed's first pass
    optimizer.step()
    assert matrix.numel() == odd.numel() == 0


def test_under_stage_three_the_base_is_freed_before_a_step_and_what_stays_is_not():
    released: list[torch.nn.Parameter] = []
    base, small, factor = cut(8), cut(1), cut(2)
    small.ds_persist, base.requires_grad, small.requires_grad = True, False, False

    def release(module: object) -> None:
        from deepspeed.runtime.zero import partitioned_param_coordinator

        released.extend(partitioned_param_coordinator.iter_params(module, recurse=True))

    coordinator = SimpleNamespace(release_and_reset_all=release)
    module = torch.nn.ParameterList([base, small, factor])
    engine = stage_three(module, [factor], _get_param_coordinator=lambda: coordinator)
    engine.optimizer._partition_all_parameters()
    assert [item is base for item in released] == [True]
