"""The parts of an engine that are replaced, without an engine; tests/invariants has them at work in one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dual_lora import DualLoraConfig
from dual_lora.distributed import deepspeed_engine
from tests.unit.distributed.deepspeed_doubles import cut, stage_three, stage_two


def test_under_stage_three_the_parameters_of_a_block_are_listed_once():
    from deepspeed.runtime.zero import partitioned_param_coordinator
    from deepspeed.utils import set_z3_leaf_module

    class Counting(torch.nn.Linear):
        asked = 0

        def named_parameters(self, *args: object, **kwargs: object) -> object:
            self.asked += 1
            return super().named_parameters(*args, **kwargs)

        def ds_external_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
            return [("another's", other)]

    factor, other = cut(2), torch.nn.Parameter(torch.zeros(1))
    stage_three(torch.nn.ParameterList([factor]), [factor])
    block, plain = Counting(2, 2), Counting(2, 2)
    set_z3_leaf_module(block, True)
    for module in (block, plain):
        for _ in range(3):
            found = list(partitioned_param_coordinator.iter_params(module, recurse=True))
            assert [id(item) for item in found] == [id(item) for item in (module.weight, module.bias, other)]
    assert (block.asked, plain.asked) == (1, 3)


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


@pytest.fixture
def deepspeeds_linear(monkeypatch):
    """Its linear function in the place of torch's, as under ZeRO-3."""
    from deepspeed.runtime.zero import linear, partition_parameters

    patched, torchs = partition_parameters.InsertPostInitMethodToModuleSubClasses, torch.nn.functional.linear
    monkeypatch.setattr(patched, "linear_bk", torchs, raising=False)
    monkeypatch.setattr(torch.nn.functional, "linear", linear.zero3_linear_wrap)
    return torchs


def kept_for_backward(*arguments: torch.Tensor | None) -> list[torch.Tensor]:
    """Return what torch.nn.functional.linear keeps under autocast."""
    kept: list[torch.Tensor] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda item: kept.append(item) or item, lambda item: item),
        torch.autocast("cpu", torch.bfloat16),
    ):
        torch.nn.functional.linear(*arguments)
    return kept


def fetched(weight: torch.Tensor, *, trained: bool = False, stays: bool = False) -> torch.nn.Parameter:
    """Return a parameter as ZeRO-3 has it during the passes of its block, or at all times."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    parameter = torch.nn.Parameter(weight, requires_grad=trained)
    parameter.ds_status = ZeroParamStatus.AVAILABLE
    parameter.ds_id, parameter.ds_z3_leaf_module, parameter.ds_persist = 0, None, stays
    return parameter


def lightened() -> None:
    factor = cut(2)
    stage_three(torch.nn.ParameterList([factor]), [factor])


def test_a_temporary_weight_is_kept_in_the_dtype_of_the_product(deepspeeds_linear):
    """DoRA multiplies with float32 copies of base weights, which DeepSpeed's function kept for the backward pass."""
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
    assert torch.float32 in {item.dtype for item in kept_for_backward(x, weight)}
    lightened()
    assert {item.dtype for item in kept_for_backward(x, weight)} == {torch.bfloat16}


def test_of_a_weight_that_stays_whole_is_kept_what_torch_keeps(deepspeeds_linear):
    """LoRA's first factor has an input of its own in float32, behind its dropout; the product needs it in bfloat16."""
    x, weight = torch.randn(4, 8, requires_grad=True), fetched(torch.randn(6, 8), trained=True, stays=True)
    assert any(item is x for item in kept_for_backward(x, weight))
    lightened()
    assert {item.dtype for item in kept_for_backward(x, weight)} == {torch.bfloat16}


def test_of_a_frozen_weight_only_the_parameter_is_kept(deepspeeds_linear):
    """DeepSpeed's function kept the layer's input as well; the parameter itself, so that it can be freed meanwhile."""
    x, weight = torch.randn(4, 8, requires_grad=True), fetched(torch.randn(6, 8))
    assert any(item is x for item in kept_for_backward(x, weight))
    lightened()
    [kept] = kept_for_backward(x, weight)
    assert kept is weight
    assert any(item is x for item in kept_for_backward(x, fetched(torch.randn(6, 8), trained=True)))
    alone = fetched(torch.randn(6, 8))
    del alone.ds_z3_leaf_module  # may be away in the backward pass: DeepSpeed's function then fetches it
    assert any(item is x for item in kept_for_backward(x, alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_weight_gives_what_torchs_linear_function_gives(dtype, autocast, bias, deepspeeds_linear):
    lightened()
    weight = torch.randn(6, 8, dtype=dtype)
    shift = torch.nn.Parameter(torch.randn(6, dtype=dtype), requires_grad=False) if bias else None
    found = []
    for linear, own in ((deepspeeds_linear, weight), (torch.nn.functional.linear, fetched(weight.clone()))):
        x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = linear(x, own, shift)
        y.float().square().sum().backward()
        found.append((y.dtype, y, x.grad.dtype, x.grad))
    (dtype_y, y, dtype_x, grad), (other_y, z, other_x, grad_z) = found
    assert (dtype_y, dtype_x) == (other_y, other_x)
    assert torch.equal(y, z)
    assert torch.equal(grad, grad_z)


def test_a_trained_bias_beside_a_frozen_weight_gets_its_gradient(deepspeeds_linear):
    lightened()
    weight, bias = fetched(torch.randn(6, 8)), torch.nn.Parameter(torch.zeros(6))
    torch.nn.functional.linear(torch.randn(4, 8), weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((6,), 4.0))


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
