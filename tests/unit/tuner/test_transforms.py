"""What compilers, tracers and loss scaling make of an adapted model: the numbers that it has without them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from peft import get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch._dynamo.utils import counters

from dual_lora import DeltaWarmupCallback, DualLoraConfig, set_loss_scale
from tests.unit.tuner.tiny_adapted_model import logits, make_base, make_config

KERNELS = ["auto", "generic", "reference"]


def adapted(**settings: object) -> nn.Module:
    torch.manual_seed(3)
    return get_peft_model(make_base("llama"), make_config("llama", **settings))


def test_a_compiled_model_is_one_graph():
    from dual_lora.kernels import dispatch

    model = adapted(target_modules=["q_proj", "v_proj"]).eval()
    expected = logits(model)
    for cached in (dispatch._select, dispatch._resolve):
        cached.cache_clear()  # the first choice of a kernel is the one that is logged
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), expected)
    assert not counters["graph_break"]


def test_a_traced_model_computes_the_same():
    model = adapted(target_modules=["q_proj", "v_proj"]).eval()
    layer = model.base_model.dual_lora_layers()[0]
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.randn(3, layer.in_features))
        x = torch.randn(3, layer.in_features)
        torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_each_example_by_vmap(kernel):
    layer = adapted(kernel=kernel).base_model.dual_lora_layers()[0]
    parameters = {name: value.detach() for name, value in layer.named_parameters() if value.requires_grad}
    x, y = torch.randn(4, 5, layer.in_features), torch.randn(4, 5, layer.out_features)

    def loss(given, one, wanted):
        return (torch.func.functional_call(layer, given, (one,)) * wanted).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for index in range(4):
        layer.zero_grad()
        (layer(x[index]) * y[index]).sum().backward()
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(each[name][index], parameter.grad, rtol=1e-4, atol=1e-6)


def gradients(scale: float, compiled: bool = False, **settings: object) -> list[torch.Tensor]:
    """Return those of one layer for a loss that is large enough for the clip to act on some entries of it."""
    model = adapted(**settings)
    layer = model.base_model.dual_lora_layers()[0]
    optimizer = torch.optim.SGD(layer.factors("default"), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
    set_loss_scale(model, scaler.get_scale())
    x, y = torch.randn(5, layer.in_features), 2 * torch.randn(5, layer.out_features)
    output = torch.compile(layer, backend="aot_eager", fullgraph=True)(x) if compiled else layer(x)
    scaler.scale((output * y).sum()).backward()
    scaler.unscale_(optimizer)
    return [factor.grad for factor in layer.factors("default")]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_scaled_loss_has_the_gradients_of_the_loss(kernel, compiled):
    """65536 is GradScaler's start. A clip at 1 as ever would leave next to nothing of C's and D's gradients."""
    plain, scaled = gradients(1.0, compiled, kernel=kernel), gradients(65536.0, compiled, kernel=kernel)
    unclipped = gradients(1.0, kernel=kernel, ste="identity")
    assert not torch.allclose(plain[2], unclipped[2]), "the clip must act"
    assert plain[2].norm() > 0.3 * unclipped[2].norm(), "and not on all of it"
    for a, b in zip(scaled, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_callback_reads_the_scale_from_the_trainers_optimizer():
    model, callback = adapted(), DeltaWarmupCallback(0)
    state, fp16 = SimpleNamespace(global_step=0, max_steps=10), SimpleNamespace(fp16=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    given = {"model": model, "optimizer": SimpleNamespace(scaler=scaler)}  # as accelerate wraps it
    layers = model.base_model.dual_lora_layers()
    callback.on_train_begin(fp16, state, None, **given)
    callback.on_step_begin(fp16, state, None, **given)
    assert {layer.loss_scale for layer in layers} == {1024.0}
    callback.on_train_end(fp16, state, None, **given)
    assert {layer.loss_scale for layer in layers} == {1.0}
    given["optimizer"] = SimpleNamespace(scaler=None)  # on a CPU nothing scales the loss
    callback.on_train_begin(fp16, state, None, **given)
    callback.on_step_begin(fp16, state, None, **given)
    assert {layer.loss_scale for layer in layers} == {1.0}
    given["optimizer"] = DeepSpeedOptimizerWrapper.__new__(DeepSpeedOptimizerWrapper)
    with pytest.raises(ValueError, match="bf16=True"):  # it scales the loss by itself
        callback.on_train_begin(fp16, state, None, **given)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match="above 0"):
        set_loss_scale(adapted(), scale)


def test_pefts_switch_of_input_casting_is_known():
    model = adapted().eval()
    expected = logits(model)
    with disable_input_dtype_casting(model):
        assert torch.equal(logits(model), expected)


class OtherTensor(torch.Tensor):
    """Stands for a quantized tensor that calls itself float32, as those of torchao and quanto do."""


def test_a_weight_that_is_no_plain_tensor_is_left_to_the_base_layer():
    model = get_peft_model(nn.ModuleDict({"layer": nn.Linear(6, 4)}), DualLoraConfig(target_modules=["layer"]))
    layer = model.base_model.model["layer"]
    assert layer.base_weight_is_plain()
    weight = layer.base_layer.weight.detach().as_subclass(OtherTensor)
    layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)
    assert not layer.base_weight_is_plain()
    with pytest.raises(NotImplementedError, match="quantized"):
        layer.merge()
