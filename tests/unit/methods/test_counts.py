"""Planned counts of biases are those of the architectures that transformers builds."""

from __future__ import annotations

import pytest
import transformers as hf

from dual_lora import models
from dual_lora.config import Dimensions, ModelConfig

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
GROUPED = SIZES | {"num_key_value_heads": 2}
MODELS = {
    "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**GROUPED)),
    "qwen2": lambda: hf.Qwen2Model(hf.Qwen2Config(**GROUPED)),
    "gpt2": lambda: hf.GPT2Model(hf.GPT2Config(n_embd=32, n_inner=48, n_layer=2, n_head=4, vocab_size=40)),
    "bert": lambda: hf.BertModel(hf.BertConfig(**SIZES), add_pooling_layer=False),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**SIZES), add_pooling_layer=False),
    "deberta": lambda: hf.DebertaV2Model(
        hf.DebertaV2Config(
            relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm", **SIZES
        )
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_biases_of_a_family(family):
    expected = sum(weight.numel() for name, weight in MODELS[family]().named_parameters() if name.endswith("bias"))
    dimensions = Dimensions(32, 48, 2, 4, 2 if family in ("llama", "qwen2") else 4, 40)
    model = ModelConfig(family, family, family, "random", dimensions, ())
    assert models.count_biases(model) == expected
