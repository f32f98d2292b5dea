"""Which layers of a model are adapted: by family where nothing is said, and as asked otherwise."""

from __future__ import annotations

import pytest
from peft import get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dual_lora import DualLoraConfig, DualLoraLinear
from tests.unit.tuner.tiny_adapted_model import BERT_SIZES, LLAMA_SIZES, gpt2, llama, make_base, make_config, roberta

TARGETS = {
    "gpt2": ({"c_attn"}, gpt2),
    "llama": ({"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}, llama),
    "qwen2": (
        {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"},
        lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_SIZES)),
    ),
    "mistral": (
        {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"},
        lambda: MistralForCausalLM(MistralConfig(**LLAMA_SIZES)),
    ),
    "roberta": ({"query", "value"}, roberta),
    "bert": ({"query", "value"}, lambda: BertForSequenceClassification(BertConfig(**BERT_SIZES))),
    "deberta-v2": (
        {"query_proj", "value_proj"},
        lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**BERT_SIZES, relative_attention=True)),
    ),
}


@pytest.mark.parametrize("model_type", list(TARGETS))
def test_target_modules_default_by_family(model_type):
    expected, make = TARGETS[model_type]
    base = make()
    assert base.config.model_type == model_type
    model = get_peft_model(base, DualLoraConfig(r_magnitude=1, r_direction=1))
    found = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, DualLoraLinear)}
    assert found == expected


def test_targets_that_match_nothing_raise():
    with pytest.raises(ValueError, match="no_such_module"):
        get_peft_model(make_base("llama"), DualLoraConfig(target_modules=["no_such_module"]))


def test_a_module_that_is_no_linear_layer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"embed_tokens is a Embedding.*torch\.nn\.Linear"):
        get_peft_model(make_base("llama"), DualLoraConfig(target_modules=["embed_tokens"]))


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"target_modules": "all-linear"}, 14),
        ({"target_modules": "all-linear", "exclude_modules": ["o_proj"]}, 12),
        ({"layers_to_transform": [1]}, 5),
        ({"layers_to_transform": 0, "layers_pattern": "layers", "target_modules": ["q_proj"]}, 1),
        ({"target_modules": r".*layers\.0\..*(q_proj|v_proj)"}, 2),
    ],
    ids=str,
)
def test_which_layers_are_adapted(settings, layers):
    model = get_peft_model(make_base("llama"), make_config("llama", **settings))
    assert len([module for module in model.modules() if isinstance(module, DualLoraLinear)]) == layers
