"""Whether layers keep W₀ + ΔW from forward to backward."""

import pytest
import torch
from peft import get_peft_model

from dual_lora import DualLoraLinear
from dual_lora.tuner import kept_weights
from tests.unit.tuner.tiny_adapted_model import TOKENS, make_base, make_config


@pytest.mark.parametrize(("free", "recomputed", "keeps"), [(6.1, False, True), (5.9, False, False), (0.0, True, True)])
def test_weights_are_kept_where_they_are_a_sixth_of_what_is_free(monkeypatch, free, recomputed, keeps):
    model = get_peft_model(make_base("llama"), make_config("llama"))
    layers = [module for module in model.modules() if isinstance(module, DualLoraLinear)]
    needed = 2 * sum(layer.get_base_layer().weight.numel() for layer in layers)
    monkeypatch.setattr(kept_weights, "_free", lambda layer: free * needed)
    with kept_weights.kept_weights(model, torch.bfloat16, recomputed=recomputed):
        assert {layer.keeps_weight for layer in layers} == {keeps}
        assert layers[0]._step_update("default").keeps_weight == keeps
    assert {layer.keeps_weight for layer in layers} == {False}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_recorded_step_begins_with_forming_the_weights_of_all_layers(monkeypatch, recomputed, dropout):
    """Not with checkpointing, where those of one block only are alive. With dropout ΔW alone is formed."""
    model = get_peft_model(make_base("llama"), make_config("llama", dropout=dropout)).train()
    layers = [module for module in model.modules() if isinstance(module, DualLoraLinear)]
    monkeypatch.setattr(kept_weights, "_free", lambda layer: 2**40)
    branch, formed = object(), []
    monkeypatch.setattr(kept_weights.dispatch, "keep_ahead", lambda *given: formed.append(given))
    with kept_weights.kept_weights(model, torch.float32, recomputed=recomputed):
        model(TOKENS)
        assert not formed
        monkeypatch.setattr(kept_weights.beside, "branch", lambda: branch)
        model(TOKENS)
    model(TOKENS)
    assert len(formed) == (not recomputed)
    for parts, *others in formed:
        assert others == [torch.float32, branch]
        assert [weight for weight, _ in parts] == [None if dropout else x.get_base_layer().weight for x in layers]
        assert all(u.factors[0] is x.factors("default")[0] for (_, u), x in zip(parts, layers, strict=True))
