"""GPT-2's output layer is its input embedding: training, merging and saving have to know.

An adapter on the output layer alone changes the output. Merged, the same sum would change the input embeddings as well.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dual_lora import methods, models
from dual_lora.config.compose import compose
from dual_lora.tasks.base import Head

WRITER = Head("causal_lm")
IDS = torch.arange(20, 60).view(2, 20)


def _adapted(*settings: str) -> Any:
    (config,) = compose(["model=tiny_gpt2", "task=e2e", "data.source=sample", "task.metrics=[BLEU]", *settings])
    loaded = models.load(config.model, WRITER, dtype="float32", seed=0)
    model = methods.apply(loaded.model, config.method, model_config=config.model, head=WRITER, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("method", ["lora", "dual_lora", "dora"])
@pytest.mark.parametrize("targets", ["[q_proj,v_proj]", "[q_proj,v_proj,lm_head]"])
def test_evaluation_scores_the_trained_model_also_with_an_adapted_output_layer(method: str, targets: str) -> None:
    model = _adapted(f"method={method}", f"method.target_modules={targets}")
    with torch.no_grad():
        apart = model(input_ids=IDS).logits
        with methods.merged(model) as scored:
            torch.testing.assert_close(scored(input_ids=IDS).logits, apart, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(input_ids=IDS).logits, apart, rtol=0, atol=0)


def test_an_adapted_output_layer_is_not_exported_into_tied_weights() -> None:
    with pytest.raises(ValueError, match="tied to another layer"):
        methods.export_merged(_adapted("method=lora", "method.target_modules=[q_proj,lm_head]"))


def test_the_split_model_keeps_one_weight_for_both_ends(tmp_path: Any) -> None:
    model = _adapted("method=full")
    assert model.lm_head.weight is model.transformer.wte.weight
    trained = methods.trainable_state(model)
    assert "lm_head.weight" not in trained  # once, under the name of the embedding
    models.fuse_attention(model).save_pretrained(tmp_path)
    assert model.config.architectures == ["GPT2LMHeadModel"]
    saved = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(saved["transformer.wte.weight"], trained["transformer.wte.weight"], rtol=0, atol=0)
