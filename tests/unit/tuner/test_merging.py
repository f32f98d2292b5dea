"""Merging: the merged model gives the same answer, and the base weight comes back bit for bit."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from dual_lora import DualLoraConfig, DualLoraLinear, set_delta_warmup
from tests.unit.tuner.tiny_adapted_model import logits, make_base, make_config, train_a_little

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def adapted_layers(model: nn.Module) -> list[DualLoraLinear]:
    return [module for module in model.modules() if isinstance(module, DualLoraLinear)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("safe_merge", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "roberta"])
def test_unmerging_restores_every_bit(family, dtype, safe_merge):
    model = get_peft_model(make_base(family, dtype), make_config(family)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    addresses = [layer.weight.data_ptr() for layer in adapted_layers(model)]
    expected = logits(model)
    model.merge_adapter(safe_merge=safe_merge)
    assert not any(torch.equal(layer.weight, before_) for layer, before_ in zip_weights(model, before))
    model.unmerge_adapter()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [layer.weight.data_ptr() for layer in adapted_layers(model)] == addresses, "ties and views would break"
    assert torch.equal(logits(model), expected)


def zip_weights(model: nn.Module, state: dict[str, torch.Tensor]) -> list[tuple[DualLoraLinear, torch.Tensor]]:
    names = [name for name, module in model.named_modules() if isinstance(module, DualLoraLinear)]
    return [
        (layer, state[f"{name}.base_layer.weight"]) for name, layer in zip(names, adapted_layers(model), strict=True)
    ]


@pytest.mark.parametrize("family", ["gpt2", "llama", "roberta"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_the_merged_model_gives_the_same_answer(family, dtype, bound):
    model = get_peft_model(make_base(family, dtype), make_config(family)).train()
    train_a_little(model)
    expected = logits(model.eval())
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=bound, atol=bound)
    model.unmerge_adapter()
    merged = model.merge_and_unload()
    assert type(merged) is type(make_base(family))
    assert not [name for name in merged.state_dict() if "dual_lora" in name or "base_layer" in name]
    torch.testing.assert_close(logits(merged), expected, rtol=bound, atol=bound)


def test_merge_and_unload_of_a_classifier_keeps_its_trained_head():
    """PEFT's own `_replace_module` fails here (registration.py)."""
    model = get_peft_model(make_base("roberta"), make_config("roberta")).train()
    head = make_base("roberta").classifier.dense.weight
    train_a_little(model)
    merged = model.merge_and_unload()
    assert type(merged.classifier).__name__ == "RobertaClassificationHead"
    assert not torch.equal(merged.classifier.dense.weight, head)


def test_a_merged_model_saves_and_loads_as_a_plain_one(tmp_path):
    model = get_peft_model(make_base("llama"), make_config("llama")).eval()
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(type(merged).from_pretrained(tmp_path)), logits(merged))


@pytest.mark.parametrize("base_class", [nn.Linear, Conv1D])
def test_merging_adds_exactly_the_reported_update_once_rounded(base_class):
    base = nn.Linear(9, 5) if base_class is nn.Linear else Conv1D(5, 9)
    model = get_peft_model(
        nn.ModuleDict({"layer": base}).bfloat16(), DualLoraConfig(target_modules=["layer"], init_std=0.3)
    )
    layer = model.base_model.model["layer"]
    expected = (layer.weight.float() + layer.get_delta_weight("default")).bfloat16()
    model.merge_adapter()
    assert torch.equal(layer.weight, expected)


def test_merging_during_warmup_warns_and_merges_that_share():
    model = get_peft_model(make_base("llama"), make_config("llama")).eval()
    set_delta_warmup(model, 0.5)
    expected = logits(model)
    with pytest.warns(UserWarning, match=r"warm-up factor 0\.5"):
        model.merge_adapter()
    torch.testing.assert_close(logits(model), expected)
    set_delta_warmup(model, 1)
    model.unmerge_adapter()
    for layer, before in zip(adapted_layers(model), adapted_layers(make_adapted()), strict=True):
        assert torch.equal(layer.weight, before.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.merge_adapter()


def make_adapted() -> nn.Module:
    return get_peft_model(make_base("llama"), make_config("llama"))


def test_merging_two_adapters_one_after_the_other_and_back():
    model = get_peft_model(make_base("llama"), make_config("llama"), adapter_name="first").eval()
    model.add_adapter("second", make_config("llama", r_magnitude=1))
    before = [layer.weight.clone() for layer in adapted_layers(model)]
    model.base_model.set_adapter(["first", "second"])
    expected = logits(model)
    model.merge_adapter(["first"])
    with pytest.warns(UserWarning, match="Already following adapters were merged first"):
        model.merge_adapter(["second"])
    assert adapted_layers(model)[0].merged_adapters == ["first", "second"]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    for layer, weight in zip(adapted_layers(model), before, strict=True):
        assert torch.equal(layer.weight, weight)


def test_safe_merge_of_a_broken_adapter_raises_and_touches_nothing():
    model = make_adapted()
    layer = adapted_layers(model)[0]
    before = layer.weight.clone()
    with torch.no_grad():
        layer.factors("default")[1].fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.weight, before)
    assert not layer.merged


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda weight: torch.empty(0), "holds only a part"),
        (lambda weight: weight.to(torch.int8), "quantized"),
    ],
)
def test_merging_a_weight_that_is_not_whole_is_refused(break_it, words):
    """What ZeRO-3 leaves of a parameter between forwards, and what an 8-bit layer stores: no silent no-op."""
    model = make_adapted()
    layer = adapted_layers(model)[0]
    layer.base_layer.weight = nn.Parameter(break_it(layer.base_layer.weight.data), requires_grad=False)
    with pytest.raises(NotImplementedError, match=words):
        model.merge_and_unload()
