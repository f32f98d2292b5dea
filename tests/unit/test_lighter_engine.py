"""The parts of an engine that are replaced, without an engine; tests/invariants has them at work in one."""

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from transformers import LlamaConfig, LlamaForCausalLM

from dual_lora import DualLoraConfig
from dual_lora.training import deepspeed_engine


def lightened(monkeypatch: pytest.MonkeyPatch, processes: int = 2, **attributes: object) -> SimpleNamespace:
    """An optimizer of one of so many processes whose gradients are all alike, made lighter for stage 2."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: tensor.mul_(processes))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: processes)
    own = {"dp_process_group": None, "_update_model_bit16_weights": lambda group: None, "cpu_offload": False}
    own |= {"flatten": _flatten_dense_tensors, "unflatten": _unflatten_dense_tensors, "clip_grad": 1.0}
    optimizer = SimpleNamespace(**own | {"_global_grad_norm": None, "averaged_gradients": {}} | attributes)
    engine = SimpleNamespace(module=torch.nn.Linear(2, 2), optimizer=optimizer)
    deepspeed_engine.lighten(engine, processes, 2)
    return optimizer


def test_the_norm_is_of_all_gradients_of_all_processes_and_clips_each_group(monkeypatch):
    groups = {0: None, 1: [torch.tensor([[4.0, 0.0]]), torch.tensor([5.0])]}  # the first has been flattened already
    optimizer = lightened(monkeypatch, averaged_gradients=groups)
    first, second = torch.tensor([3.0, 0.0]), torch.tensor([4.0, 0.0, 5.0])
    optimizer.unscale_and_clip_grads([first], None)
    optimizer.averaged_gradients[1] = None
    optimizer.unscale_and_clip_grads([second], None)
    assert optimizer._global_grad_norm.item() == pytest.approx(10.0)
    torch.testing.assert_close(first, torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(second, torch.tensor([0.4, 0.0, 0.5]))
    assert optimizer.compute_grad_norm is False, "DeepSpeed would take the norm once more, and wait for it"


@pytest.mark.parametrize(("clip", "value"), [(0.0, 3.0), (5.0, 3.0)])
def test_small_gradients_and_those_that_are_not_to_be_clipped_stay(clip, value, monkeypatch):
    optimizer, flat = lightened(monkeypatch, clip_grad=clip), torch.tensor([value])
    optimizer.unscale_and_clip_grads([flat], None)
    assert flat.item() == value
    assert optimizer._global_grad_norm.item() == pytest.approx(2**0.5 * value)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite_is_told_and_spoils_the_step(value, monkeypatch):
    optimizer, flat = lightened(monkeypatch), torch.tensor([value, 1.0])
    optimizer.unscale_and_clip_grads([flat], None)
    assert not optimizer._global_grad_norm.isfinite()
    assert flat[0].isnan()


def test_offloaded_gradients_are_clipped_by_deepspeed(monkeypatch):
    """Its norms are taken while they are copied to the host."""
    assert not hasattr(lightened(monkeypatch, cpu_offload=True), "unscale_and_clip_grads")


@pytest.mark.parametrize("divide", [True, False])
def test_gradients_become_the_mean_in_place(divide, monkeypatch):
    bucket = [torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])]
    given = [tensor.clone() for tensor in bucket]
    assert lightened(monkeypatch).allreduce_and_copy(bucket, torch.float32, divide=divide) is None
    assert all(torch.equal(tensor, its * (1 if divide else 2)) for tensor, its in zip(bucket, given, strict=True))


def test_parameters_are_bound_again_only_when_something_moved(monkeypatch):
    flat, calls = torch.zeros(6), []
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2, 2))]

    def bind(group: int) -> None:
        calls.append(group)
        parameters[0].data, parameters[1].data = flat[:2], flat[2:].view(2, 2)

    groups = {"bit16_groups_flat": [flat], "bit16_groups": [parameters]}
    optimizer = lightened(monkeypatch, _update_model_bit16_weights=bind, **groups)
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
