"""The parts of an engine that are replaced, without an engine; tests/invariants has them at work in one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dual_lora import DualLoraConfig
from dual_lora.training import deepspeed_engine, deepspeed_steps

PROCESSES, RANK = 2, 1


@pytest.fixture(autouse=True)
def two_processes_with_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over the processes without any: this is the second of two."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: tensor.mul_(PROCESSES))
    monkeypatch.setattr(deepspeed_steps, "sum_own_share", lambda rows, group: rows[RANK] * PROCESSES)


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


def test_under_stage_three_whole_parameters_are_put_together_of_all_shares(monkeypatch):
    matrix, odd, freed = cut(2, 2), cut(3), cut(2)
    released = SimpleNamespace(release_and_reset_all=lambda module: None)
    share = torch.tensor([30.0, 40.0, 70.0, 0.0, 90.0])  # of the second process: 2 of 4, the last of 3, 1 of 2
    optimizer = SimpleNamespace(
        dp_process_group=None,
        offload_optimizer=False,
        clip_grad=0.0,
        step=lambda: None,
        _grad_acc_hooks=[],
        _leaf_module_hooks=[Hook()],
        averaged_gradients={},
        module=torch.nn.ParameterList([matrix, odd, freed]),
        fp16_groups=[[matrix, odd], [freed]],
        fp16_partitioned_groups_flat=[share[:4], share[4:]],
        _get_param_coordinator=lambda: released,
    )
    engine = engine_of(optimizer, [matrix, odd, freed])
    deepspeed_engine.lighten(engine, PROCESSES, 3)
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


def test_under_stage_three_the_base_is_freed_before_a_step_and_what_stays_is_not():
    released: list[torch.nn.Parameter] = []
    base, small, factor = cut(8), cut(1), cut(2)
    small.ds_persist, base.requires_grad, small.requires_grad = True, False, False
    optimizer = SimpleNamespace(
        dp_process_group=None,
        offload_optimizer=False,
        step=lambda: None,
        _grad_acc_hooks=[],
        module=torch.nn.ParameterList([base, small, factor]),
        fp16_groups=[[factor]],
        fp16_partitioned_groups_flat=[torch.zeros(1)],
        _get_param_coordinator=lambda: SimpleNamespace(release_and_reset_all=release),
    )

    def release(module: object) -> None:
        from deepspeed.runtime.zero.partitioned_param_coordinator import iter_params

        released.extend(iter_params(module, recurse=True))

    deepspeed_engine.lighten(engine_of(optimizer, [base, small, factor]), PROCESSES, 3)
    optimizer._partition_all_parameters()
    assert [item is base for item in released] == [True]


def test_the_host_waits_for_a_gpu_that_is_blocks_behind(monkeypatch):
    from deepspeed.utils import set_z3_leaf_module

    happened: list[str] = []

    class Event:
        count = 0

        def __init__(self) -> None:
            Event.count += 1
            self.number = Event.count

        def record(self) -> None:
            happened.append(f"asked for {self.number}")

        def synchronize(self) -> None:
            happened.append(f"waited for {self.number}")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(deepspeed_engine, "AHEAD", 2)
    fetched: list[torch.nn.Module] = []
    coordinator = SimpleNamespace(fetch_sub_module=lambda module, forward: fetched.append(module))
    deepspeed_engine._stay_near(coordinator)
    block, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    set_z3_leaf_module(block, True)
    for module in (block, other, block, block, block):
        coordinator.fetch_sub_module(module, forward=True)
    assert fetched == [block, other, block, block, block]
    assert happened == [*(f"asked for {n}" for n in (1, 2, 3)), "waited for 1", "asked for 4", "waited for 2"]


def test_a_temporary_weight_is_kept_in_the_dtype_of_the_product(monkeypatch):
    """DoRA multiplies with float32 copies of base weights, which DeepSpeed's function kept for the backward pass."""
    from deepspeed.runtime.zero import linear, partition_parameters

    patched = partition_parameters.InsertPostInitMethodToModuleSubClasses
    monkeypatch.setattr(patched, "linear_bk", torch.nn.functional.linear, raising=False)
    monkeypatch.setattr(torch.nn.functional, "linear", linear.zero3_linear_wrap)
    x, weight = torch.randn(4, 8, requires_grad=True), torch.nn.Parameter(torch.randn(6, 8), requires_grad=False)
    weight.ds_id = 0
    kept: dict[str, list[torch.Tensor]] = {}

    def kept_for_backward(name: str, weight: torch.Tensor) -> None:
        kept[name] = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda item: kept[name].append(item) or item, lambda item: item),
            torch.autocast("cpu", torch.bfloat16),
        ):
            torch.nn.functional.linear(x, weight)

    kept_for_backward("before", weight * 1.0)
    assert torch.float32 in {item.dtype for item in kept["before"]}
    deepspeed_engine._keep_no_temporary_weights()
    kept_for_backward("temporary", weight * 1.0)
    kept_for_backward("parameter", weight)
    assert {item.dtype for item in kept["temporary"]} == {torch.bfloat16}
    assert any(item is weight for item in kept["parameter"]), "a parameter is kept itself, so that it can be freed"


def test_parameters_are_bound_again_only_when_something_moved():
    flat, calls = torch.zeros(6), []
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2, 2))]

    def bind(group: int) -> None:
        calls.append(group)
        parameters[0].data, parameters[1].data = flat[:2], flat[2:].view(2, 2)

    groups = {"bit16_groups_flat": [flat], "bit16_groups": [parameters]}
    optimizer = stage_two(parameters, _update_model_bit16_weights=bind, **groups).optimizer
    optimizer._update_model_bit16_weights(0)
    optimizer._update_model_bit16_weights(0)
    assert calls == [0]
    parameters[1].data = torch.ones(2, 2)
    optimizer._update_model_bit16_weights(0)
    optimizer._update_model_bit16_weights(0)
    assert calls == [0, 0]
    flat.add_(1.0)
    assert all((parameter == 1.0).all() for parameter in parameters)


def test_blocks_are_fetched_whole_and_those_that_train_get_an_input_with_a_gradient():
    from deepspeed.utils import get_z3_leaf_modules

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes))
    layers = base.model.layers
    model = get_peft_model(base, DualLoraConfig(r_magnitude=3, r_direction=3, layers_to_transform=[1]))
    elements = deepspeed_engine.fetch_whole_blocks(model)
    assert get_z3_leaf_modules(model) == [layers[0], layers[1]]
    assert elements == sum(parameter.numel() for parameter in layers[1].parameters())
    seen = [[], []]
    for inputs, layer in zip(seen, layers, strict=True):
        layer.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0].requires_grad))
    tokens = torch.arange(2, 12).view(1, 10)
    model(input_ids=tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        model(input_ids=tokens)
    assert seen == [[False, False], [True, False]]
