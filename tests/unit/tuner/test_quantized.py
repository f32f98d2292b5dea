"""Bases whose weight is quantized: called as they are, and merged into by quantizing the sum, as their library does."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import peft.utils
import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, QuantoConfig, TorchAoConfig

from dual_lora import DualLoraConfig
from tests.unit.tuner.tiny_adapted_model import logits, make_base, make_config, train_a_little

TORCHAO = ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"]
KINDS = [
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*TORCHAO, "hqq"]),
    "bitsandbytes, 8 bits",
    "bitsandbytes, 4 bits",
]
IN, OUT = 64, 32
MERGING = pytest.mark.skipif(
    not hasattr(peft.utils, "resolve_quantization_backend"), reason="PEFT before 0.21 quantizes nothing again"
)


def torchao_config(kind: str) -> object:
    return getattr(pytest.importorskip("torchao.quantization"), kind)()


def quantized(kind: str, linear: nn.Linear) -> nn.Module:
    """Return `linear` with its weight quantized, by the library itself."""
    if kind == "hqq":
        hqq = pytest.importorskip("hqq.core.quantize")
        settings = hqq.BaseQuantizeConfig(nbits=8, group_size=32)
        return hqq.HQQLinear(linear, settings, compute_dtype=torch.float32, device="cpu", del_orig=False)
    if kind == "gptq":
        layer = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch").TorchLinear(
            bits=4, group_size=32, sym=True, desc_act=False, in_features=IN, out_features=OUT, bias=False,
            pack_dtype=torch.int32,
        )  # fmt: skip
        layer.qweight.random_(-(2**31), 2**31 - 1)
        layer.scales.fill_(0.02)
        layer.qzeros.fill_(0x77777777)
        layer.post_init()
        return layer
    if kind in TORCHAO:
        layer = copy.deepcopy(linear)
        pytest.importorskip("torchao.quantization").quantize_(layer, torchao_config(kind))
        return layer
    modules = pytest.importorskip("bitsandbytes", reason="needs the extra: pip install dual-lora[quantized]").nn
    if kind == "bitsandbytes, 4 bits":
        layer = modules.Linear4bit(IN, OUT, compute_dtype=torch.float32, quant_type="nf4")
    else:
        layer = modules.Linear8bitLt(IN, OUT, has_fp16_weights=False)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def plain_layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT).requires_grad_(False)


def adapted(base: nn.Module, kind: str = "", **settings: object) -> nn.Module:
    holder = nn.ModuleDict({"layer": base})
    if kind in TORCHAO:  # as transformers leaves a model that it has quantized
        holder.hf_quantizer = SimpleNamespace(quantization_config=TorchAoConfig(quant_type=torchao_config(kind)))
    return get_peft_model(holder, DualLoraConfig(**{"target_modules": ["layer"], "init_std": 0.2, **settings})).eval()


@pytest.mark.parametrize("init_std", [0.2, "relative:0.1"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_computes_base_plus_update(kind, init_std):
    plain = plain_layer()
    layer = adapted(quantized(kind, plain), kind, init_std=init_std).base_model.model["layer"]
    x = torch.randn(3, IN, requires_grad=True)
    y = layer(x)
    delta = layer.get_delta_weight("default")
    torch.testing.assert_close(y, layer.base_layer(x) + x @ delta.T)
    if init_std != 0.2:
        assert (delta.norm() / plain.weight.norm()).item() == pytest.approx(0.1, rel=0.3)
    y.sum().backward()
    assert all(factor.grad.any() for factor in layer.factors("default"))


@MERGING
@pytest.mark.slow
def test_a_weight_that_peft_cannot_read_is_called_and_neither_measured_nor_merged_into():
    layer, x = adapted(quantized("gptq", plain_layer())).base_model.model["layer"], torch.randn(3, IN)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ layer.get_delta_weight("default").T)
    with pytest.raises(NotImplementedError, match="cannot quantize the sum again"):
        layer.merge()
    with pytest.raises(ValueError, match="give a number"):
        adapted(quantized("gptq", plain_layer()), init_std="relative:0.1")


@MERGING
@pytest.mark.parametrize("kind", KINDS)
def test_merging_quantizes_the_sum_as_the_library_does(kind):
    model = adapted(quantized(kind, plain_layer()), kind)
    layer, x = model.base_model.model["layer"], torch.randn(3, IN)
    total = plain_layer()
    total.weight.copy_(layer.quantization_backend.get_base_weight(layer.base_layer) + layer.get_delta_weight("default"))
    base, before = layer(x) - x @ layer.get_delta_weight("default").T, layer(x)  # bitsandbytes packs 4 bits anew here
    expected = quantized(kind, total).eval().requires_grad_(False)(x)
    assert (expected - before).norm() < (base - before).norm(), "the update is above a step"
    names = set(model.state_dict())
    with pytest.warns(UserWarning, match="rounds the sum to the quantization's steps"):
        model.merge_adapter()
    assert torch.equal(layer(x), expected)
    assert set(model.state_dict()) == names, "what is kept for unmerging is no part of the model"
    model.unmerge_adapter()
    assert torch.equal(layer(x), before)
    kind_of_base = type(layer.base_layer)
    merged = model.merge_and_unload()["layer"]
    assert type(merged) is kind_of_base
    assert torch.equal(merged(x), expected)


@MERGING
@pytest.mark.parametrize("kind", KINDS)
def test_two_merges_are_undone_bit_for_bit(kind):
    model = adapted(quantized(kind, plain_layer()), kind)
    model.add_adapter("second", DualLoraConfig(target_modules=["layer"], init_std=0.2))
    layer, x = model.base_model.model["layer"], torch.randn(3, IN)
    before = layer(x)
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="Already following adapters were merged"):
        model.merge_adapter(["second"])
    assert layer.merged_adapters == ["default", "second"]
    model.unmerge_adapter()
    assert torch.equal(layer(x), before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TORCHAO, "quanto"])
def test_a_model_that_transformers_quantizes(kind, tmp_path):
    """These weights say that they are float32, and are classes of their own; PEFT cannot quantize quanto's again."""
    if kind == "quanto":
        pytest.importorskip("optimum.quanto")
        config = QuantoConfig(weights="int8")
    else:
        config = TorchAoConfig(quant_type=torchao_config(kind))
    make_base("llama").save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu").eval()
    plain = make_base("llama")
    with torch.no_grad():  # the same adapter on the weights that the quantized ones stand for
        for name, module in base.named_modules():
            if isinstance(module, nn.Linear):
                plain.get_submodule(name).weight.copy_(module(torch.eye(module.in_features)).T)
    expected, model = [get_peft_model(one, make_config("llama", init_std=0.5)).eval() for one in (plain, base)]
    for name, factor in expected.named_parameters():
        if "dual_lowrank" in name:
            factor.data.copy_(model.get_parameter(name))
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-3, atol=1e-3)
    train_a_little(model.train())
    trained = logits(model.eval())
    if kind == "quanto":
        with pytest.raises(NotImplementedError, match="cannot quantize the sum again"):
            model.merge_and_unload()
        return
    with model.disable_adapter():
        without = logits(model)
    with pytest.warns(UserWarning, match="quantization's steps"):
        merged = model.merge_and_unload()
    assert (logits(merged) - trained).norm() < (without - trained).norm() / 4


@pytest.mark.slow
def test_torchao_weights_whose_settings_are_not_known_are_called_and_not_merged_into():
    """As where the user calls `quantize_`: nothing says how to quantize the sum again."""
    model = adapted(quantized("Int8WeightOnlyConfig", plain_layer()))
    model.base_model.model["layer"](torch.randn(3, IN))
    with pytest.raises(NotImplementedError, match="cannot quantize the sum again"):
        model.merge_and_unload()
