"""The forward and backward pass of an adapted model under what users put around it: autocast, compile, hooks."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from dual_lora import DualLoraConfig, DualLoraLinear
from dual_lora.kernels import factor_cache
from tests.unit.tuner.tiny_adapted_model import TOKENS, logits, make_base, make_config


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_leaves_the_gradients_as_they_are(use_reentrant):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        base = make_base("llama")
        torch.manual_seed(5)
        model = get_peft_model(base, make_config("llama")).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(TOKENS, labels=TOKENS).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-8)


def test_autocast_computes_in_its_dtype_with_float32_factors():
    model = get_peft_model(make_base("llama"), make_config("llama"))
    layer = next(module for module in model.modules() if isinstance(module, DualLoraLinear))
    x = torch.randn(3, layer.in_features)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.03, atol=0.03)
    y.sum().backward()
    assert all(factor.grad.dtype == torch.float32 for factor in layer.factors("default"))


def test_generate_promises_that_no_factor_changes_and_other_calls_do_not():
    model = get_peft_model(make_base("llama"), make_config("llama")).eval()
    layer = next(module for module in model.modules() if isinstance(module, DualLoraLinear))
    factors = layer.factors("default")
    promised = []

    def note(*_):
        factor_cache.put(factors, "made")
        promised.append(factor_cache.get(factors) == "made")

    layer.register_forward_hook(note)
    model(TOKENS)
    assert promised == [False]
    model.generate(input_ids=TOKENS, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert promised == [False, True, True, True]
    model(TOKENS)
    assert promised[-1] is False


def test_a_model_without_generate_has_none_after_adaptation():
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), DualLoraConfig(target_modules=["0"]))
    assert not hasattr(model.base_model, "generate")


def test_torch_compile_gives_the_same_output_and_gradients_without_a_warning(recwarn):
    torch._dynamo.reset()
    model = get_peft_model(make_base("llama"), make_config("llama")).train()
    layer = next(module for module in model.modules() if isinstance(module, DualLoraLinear))
    compiled = torch.compile(layer, backend="aot_eager")
    results = []
    for function in (layer, compiled):
        x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
        y = function(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(factor.grad.clone() for factor in layer.factors("default"))])
        layer.zero_grad()
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain)
    assert not [str(warning.message) for warning in recwarn if "dual_lora" in str(warning.message)]


def test_the_kernel_in_use_can_be_read_for_the_record():
    model = get_peft_model(make_base("llama"), make_config("llama", dropout=0.1)).train()
    assert model.base_model.kernel_names() == {"generic, separate update": 10}
    assert model.eval().base_model.kernel_names() == {"generic": 10}
    forced = get_peft_model(make_base("llama"), make_config("llama", kernel="reference"))
    assert forced.base_model.kernel_names() == {"reference": 10}


def test_an_explicit_kernel_that_cannot_be_met_is_an_error():
    model = get_peft_model(make_base("llama"), make_config("llama", kernel="fused", dropout=0.1)).train()
    with pytest.raises(ValueError, match="kernel='fused'.*dropout"):
        model(TOKENS)


def test_a_base_layer_with_hooks_is_called_and_not_bypassed():
    """Offloading and other tools put hooks on the frozen layer; one GEMM with its weight would skip them."""
    model = get_peft_model(make_base("llama"), make_config("llama")).eval()
    layer = next(module for module in model.modules() if isinstance(module, DualLoraLinear))
    calls = []
    expected = logits(model)
    layer.base_layer.register_forward_hook(lambda *arguments: calls.append(1))
    torch.testing.assert_close(logits(model), expected)
    assert calls
