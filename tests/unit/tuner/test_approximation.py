"""Dual LoRA as LoRA: the best approximation of that rank for the inputs that a layer has."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from dual_lora.tuner import registration
from dual_lora.tuner.approximation import layer_inputs, low_rank, write_as_lora
from tests.unit.tuner.tiny_adapted_model import TOKENS, logits, make_base, make_config, train_a_little


def trained(family: str, **settings: object) -> nn.Module:
    model = get_peft_model(make_base(family), make_config(family, **settings)).train()
    train_a_little(model)
    return model.eval()


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_at_full_rank_nothing_is_lost(family, tmp_path):
    model = trained(family)
    expected = logits(model)
    inputs = layer_inputs(model, [{"input_ids": TOKENS}])
    write_as_lora(model, tmp_path, rank=48, inputs=inputs)
    loaded = PeftModel.from_pretrained(make_base(family), tmp_path).eval()
    assert loaded.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-5)


def test_it_is_the_best_of_its_rank_for_these_inputs():
    """Against the closed form by another way: whiten with H^½, truncate, and undo; and against PEFT's plain SVD."""
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(20, 30, generator=generator)
    inputs = torch.randn(400, 30, generator=generator) @ torch.diag(torch.logspace(-2, 1, 30))
    a, b = low_rank(update, 4, inputs)
    h = inputs.double().T @ inputs.double() / len(inputs)
    h += 0.01 * inputs.square().mean().double() * torch.eye(30, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(h)
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    u, s, v = torch.linalg.svd(update.double() @ root, full_matrices=False)
    expected = (u[:, :4] * s[:4]) @ v[:4] @ inverse
    torch.testing.assert_close((b @ a).double(), expected, rtol=1e-4, atol=1e-4)

    def lost(a, b):
        return ((update - b @ a) @ inputs.T).norm()

    plain = low_rank(update, 4)
    assert lost(a, b) < 0.7 * lost(*plain)
    u, s, v = torch.linalg.svd(update)
    torch.testing.assert_close(plain[1] @ plain[0], (u[:, :4] * s[:4]) @ v[:4], rtol=1e-4, atol=1e-4)


def test_modules_and_tokens_that_are_trained_whole_come_along(tmp_path):
    model = trained("llama", modules_to_save=["lm_head"], trainable_token_indices={"embed_tokens": [3, 5]})
    write_as_lora(model, tmp_path, rank=24)
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(make_base("llama"), tmp_path)), logits(model), rtol=1e-4, atol=1e-5
    )


def test_what_lora_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        write_as_lora(trained("llama"), tmp_path, rank=0)
    if registration.saves_biases():
        with pytest.raises(ValueError, match="merge it instead"):
            write_as_lora(trained("gpt2", bias="all"), tmp_path, rank=2)
