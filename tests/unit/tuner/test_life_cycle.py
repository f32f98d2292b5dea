"""The life of a Dual LoRA adapter in PEFT and transformers: trained, saved, loaded, switched off and on."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from packaging.version import Version
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import load_file
from transformers.integrations.peft import MIN_PEFT_VERSION

from dual_lora import DualLoraConfig, DualLoraLinear
from dual_lora.tuner import registration
from dual_lora.tuner.factor import FACTORS
from tests.unit.tuner.tiny_adapted_model import MODELS, logits, make_base, make_config, train_a_little


@pytest.fixture(params=list(MODELS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_training_moves_every_factor_and_nothing_else(family):
    base = make_base(family)
    frozen = copy.deepcopy(base.state_dict())
    model = get_peft_model(base, make_config(family)).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_a_little(model)
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        # A classification head is trained by PEFT's modules_to_save, its original stays.
        assert moved == ("dual_lowrank_" in name or "modules_to_save" in name), name
    model.eval()
    restored = model.unload()
    for name, value in restored.state_dict().items():
        if "classifier" not in name:  # unload keeps the trained head, as PEFT's other tuners do
            assert torch.equal(value, frozen[name]), name


def test_equal_ranks_have_the_parameters_of_lora_at_twice_the_rank():
    model = get_peft_model(make_base("llama"), DualLoraConfig(r_magnitude=3, r_direction=3))
    expected = sum(
        6 * (layer.in_features + layer.out_features) for layer in model.modules() if isinstance(layer, DualLoraLinear)
    )
    assert model.get_nb_trainable_parameters()[0] == expected


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("subtract_start", [False, True])
def test_a_saved_adapter_loads_to_the_same_output(family, dtype, low_cpu_mem_usage, subtract_start, tmp_path):
    model = get_peft_model(make_base(family, dtype), make_config(family, subtract_start=subtract_start)).train()
    train_a_little(model)
    expected = logits(model.eval())
    assert not torch.equal(expected, logits(make_base(family, dtype)))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    torch.manual_seed(99)
    loaded = PeftModel.from_pretrained(make_base(family, dtype), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), expected)
    assert all(p.dtype == torch.float32 for n, p in loaded.named_parameters() if "dual_lowrank_" in n)


def test_the_saved_file_holds_the_factors_and_nothing_else(tmp_path):
    model = get_peft_model(make_base("llama"), make_config("llama"))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 10 * 4
    assert {key.split("_proj.")[1] for key in saved} == {f"{name}.weight" for name in FACTORS}


def test_the_auto_class_of_the_card_loads_base_and_adapter(tmp_path):
    for name, auto_class, given in [
        ("llama", AutoPeftModelForCausalLM, {}),
        ("gpt2", AutoPeftModel, {"task_type": None}),
        ("roberta", AutoPeftModelForSequenceClassification, {}),
    ]:
        folder = tmp_path / name
        make_base(name).save_pretrained(folder / "base")
        base = MODELS[name]().from_pretrained(folder / "base")
        model = get_peft_model(base, make_config(name, **given)).train()
        train_a_little(model)
        expected = logits(model.eval())
        model.save_pretrained(folder / "adapter")
        assert f"model = {auto_class.__name__}.from_pretrained(" in (folder / "adapter" / "README.md").read_text()
        settings = {"num_labels": 3} if name == "roberta" else {}
        assert torch.equal(logits(auto_class.from_pretrained(folder / "adapter", **settings).eval()), expected)


# transformers 5.24 asks for a PEFT that is not published yet, of every method.
@pytest.mark.skipif(Version(peft.__version__) < Version(MIN_PEFT_VERSION), reason="transformers wants a newer PEFT")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transformers_load_adapter_gives_the_same_output(dtype, tmp_path):
    for name in ("llama", "gpt2"):
        folder = tmp_path / name
        model = get_peft_model(make_base(name, dtype), make_config(name, subtract_start=True)).train()
        train_a_little(model)
        expected = logits(model.eval())
        model.save_pretrained(folder)
        base = make_base(name, dtype)
        base.load_adapter(str(folder))
        assert torch.equal(logits(base.eval()), expected)
        base.disable_adapters()
        assert torch.equal(logits(base), logits(make_base(name, dtype)))


def test_disabling_gives_the_base_exactly(family):
    model = get_peft_model(make_base(family), make_config(family)).eval()
    expected, with_adapter = logits(make_base(family)), logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), with_adapter)
    assert not torch.equal(with_adapter, expected)


def test_subtract_start_starts_at_the_base(family):
    model = get_peft_model(make_base(family), make_config(family, subtract_start=True)).eval()
    torch.testing.assert_close(logits(model), logits(make_base(family)), rtol=0, atol=0)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name in trainable if "start" in name]


def test_several_adapters_switch_add_up_and_go(family):
    model = get_peft_model(make_base(family), make_config(family), adapter_name="first").eval()
    model.add_adapter("second", make_config(family, r_magnitude=1, r_direction=4, ste="identity"))
    first = logits(model)
    model.set_adapter("second")
    second = logits(model)
    assert not torch.equal(first, second)
    model.set_adapter("first")
    assert torch.equal(logits(model), first)
    if family != "roberta":  # two adapters that both save a head cannot be active at once, a rule of PEFT
        model.base_model.set_adapter(["first", "second"])
        both = logits(model)
        layers = [module for module in model.modules() if isinstance(module, DualLoraLinear)]
        with torch.no_grad():
            for layer in layers:
                layer.weight.add_(layer.get_delta_weight("first") + layer.get_delta_weight("second"))
        with model.disable_adapter():
            torch.testing.assert_close(both, logits(model), rtol=1e-4, atol=1e-5)
    model.set_adapter("second")
    model.delete_adapter("first")
    assert list(model.peft_config) == ["second"]
    assert not [name for name, _ in model.named_parameters() if "first" in name]


def test_modules_to_save_are_trained_and_travel_with_the_adapter(tmp_path):
    config = make_config("llama", modules_to_save=["lm_head"])
    model = get_peft_model(make_base("llama"), config).train()
    train_a_little(model)
    expected = logits(model.eval())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make_base("llama"), tmp_path)), expected)


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("dual_lora_only", 2 * 2), ("all", 2 * 6 + 1)])
def test_bias_settings(bias, expected, tmp_path):
    """Each of the two layers has six biases, two of them in adapted modules; the final norm has one."""
    if bias != "none" and not registration.saves_biases():
        with pytest.raises(ValueError, match=f"bias='{bias}' needs PEFT 0.21"):
            make_config("gpt2", bias=bias)
        return
    model = get_peft_model(make_base("gpt2"), make_config("gpt2", bias=bias, target_modules=["c_attn", "c_fc"])).train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "bias" in name]
    assert len(trained) == expected
    train_a_little(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base("gpt2"), tmp_path)
    assert torch.equal(logits(loaded), logits(model.eval()))
