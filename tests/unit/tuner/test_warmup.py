"""The warm-up factor w: plain state of a layer, changed by `set_delta_warmup` alone."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

from dual_lora import DeltaWarmupCallback, DualLoraLinear, set_delta_warmup
from dual_lora.diagnostics.products import ClipWatch
from dual_lora.tuner import warmup
from dual_lora.tuner.warmup import default_warmup_steps, follows_recorded, scaling_in_memory, warmup_factor
from tests.unit.tuner.tiny_adapted_model import TOKENS, logits, make_base, make_config


def factors_in_use(model: torch.nn.Module) -> set[float]:
    return {module.delta_warmup for module in model.modules() if isinstance(module, DualLoraLinear)}


@pytest.mark.parametrize(("total", "steps"), [(1, 1), (10, 1), (11, 2), (250, 25), (1000, 100), (100_000, 100)])
def test_default_length_is_a_tenth_of_the_steps_at_most_100(total, steps):
    assert default_warmup_steps(total) == steps


def test_the_factor_rises_linearly_from_0_to_1():
    assert [warmup_factor(k, 4) for k in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert warmup_factor(0, 0) == 1


def test_a_layer_starts_at_1_and_eval_or_train_do_not_touch_it(tmp_path):
    model = get_peft_model(make_base("llama"), make_config("llama"))
    assert factors_in_use(model) == {1.0}
    set_delta_warmup(model, 0.25)
    model.eval()
    model.train()
    assert factors_in_use(model) == {0.25}
    assert factors_in_use(copy.deepcopy(model)) == {0.25}
    assert not [key for key in model.state_dict() if "warmup" in key]
    model.save_pretrained(tmp_path)
    assert factors_in_use(PeftModel.from_pretrained(make_base("llama"), tmp_path)) == {1.0}


def test_the_update_scales_with_the_factor():
    model = get_peft_model(make_base("llama"), make_config("llama")).eval()
    layer = next(module for module in model.modules() if isinstance(module, DualLoraLinear))
    full = layer.get_delta_weight("default")
    set_delta_warmup(model, 0.25)
    assert torch.equal(layer.get_delta_weight("default"), 0.25 * full)  # a power of two scales without rounding
    set_delta_warmup(model, 0)
    torch.testing.assert_close(logits(model), logits(make_base("llama")), rtol=0, atol=0)


def test_at_factor_0_every_gradient_is_zero():
    model = get_peft_model(make_base("llama"), make_config("llama")).train()
    set_delta_warmup(model, 0)
    model(TOKENS, labels=TOKENS).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("factor", [-0.1, 1.1, float("nan")])
def test_a_factor_outside_0_to_1_raises(factor):
    model = get_peft_model(make_base("llama"), make_config("llama"))
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        set_delta_warmup(model, factor)


def test_a_model_without_dual_lora_raises():
    with pytest.raises(ValueError, match="no Dual LoRA layer"):
        set_delta_warmup(make_base("llama"), 0.5)


def test_a_negative_length_raises():
    with pytest.raises(ValueError, match="warmup_steps = -1"):
        DeltaWarmupCallback(warmup_steps=-1)


def test_in_memory_all_layers_share_the_numbers_of_now(monkeypatch):
    model = get_peft_model(make_base("llama"), make_config("llama"))
    layers = [module for module in model.modules() if isinstance(module, DualLoraLinear)]
    full = layers[0].scaling["default"]
    set_delta_warmup(model, 0.25)
    follows = follows_recorded(model)
    with scaling_in_memory(model):  # no kernel of a CPU reads it
        assert not any(layer.scaling_in_memory for layer in layers)
        assert not follows()
    monkeypatch.setattr(warmup, "resolve_kernel", lambda *_: "fused")
    with scaling_in_memory(model):
        held = layers[0].scaling_in_memory["default"]
        assert all(layer.scaling_in_memory["default"] is held for layer in layers)
        for factor in (0.25, 0.0, 1.0):
            if factor != 0.25:
                set_delta_warmup(model, factor)
            assert held.tolist() == pytest.approx([factor * full, 1 / (factor * full) if factor else float("inf")])
            assert follows()
        watch = ClipWatch(layers[0])  # its hooks are not called by a recorded step
        assert not follows()
        watch.remove()
        assert follows()
    assert not any(layer.scaling_in_memory for layer in layers)
