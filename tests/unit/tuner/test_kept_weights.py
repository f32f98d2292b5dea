"""Whether layers keep W₀ + ΔW from forward to backward."""

import pytest
from peft import get_peft_model

from dual_lora import DualLoraLinear
from dual_lora.tuner import kept_weights
from tests.unit.tuner.tiny_adapted_model import make_base, make_config


@pytest.mark.parametrize(("free", "recomputed", "keeps"), [(6.1, False, True), (5.9, False, False), (0.0, True, True)])
def test_weights_are_kept_where_they_are_a_sixth_of_what_is_free(monkeypatch, free, recomputed, keeps):
    model = get_peft_model(make_base("llama"), make_config("llama"))
    layers = [module for module in model.modules() if isinstance(module, DualLoraLinear)]
    needed = 2 * sum(layer.get_base_layer().weight.numel() for layer in layers)
    monkeypatch.setattr(kept_weights, "_free", lambda layer: free * needed)
    with kept_weights.kept_weights(model, 2, recomputed=recomputed):
        assert {layer.keeps_weight for layer in layers} == {keeps}
        assert layers[0]._step_update("default").keeps_weight == keeps
    assert {layer.keeps_weight for layer in layers} == {False}
