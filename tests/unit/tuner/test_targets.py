"""Which layers of a model are adapted: by family where nothing is said, and as asked otherwise."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import nn
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
from tests.unit.tuner.tiny_adapted_model import (
    BERT_SIZES,
    LLAMA_SIZES,
    gpt2,
    llama,
    logits,
    make_base,
    make_config,
    roberta,
    train_a_little,
)

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
    with pytest.raises(ValueError, match=r"class Embedding.*torch\.nn\.Linear.*modules_to_save the whole"):
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


def test_ranks_and_alpha_of_single_layers(tmp_path):
    patterns = {"rank_pattern": {"q_proj": 4, r"layers\.1\..*up_proj": [1, 5]}, "alpha_pattern": {"q_proj": 2.0}}
    settings = {"r_magnitude": 3, "r_direction": 2, "alpha": 8, "init_std": 0.2}
    model = get_peft_model(make_base("llama"), make_config("llama", **settings, **patterns)).eval()
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, DualLoraLinear):
            a, _, c, _ = layer.factors("default")
            found[name] = (a.shape[0], c.shape[0], layer.scaling["default"])
    for name, (magnitude, direction, scaling) in found.items():
        ranks, alpha = ((4, 4), 2.0) if "q_proj" in name else ((3, 2), 8.0)
        ranks = (1, 5) if "1.mlp.up_proj" in name else ranks
        assert (magnitude, direction) == ranks, name
        assert scaling == pytest.approx(alpha / (ranks[0] * ranks[1]) ** 0.5), name
    assert len({value[:2] for value in found.values()}) == 3
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base("llama"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_what_an_update_without_linearity_cannot_do_is_refused_in_a_sentence(tmp_path):
    model = get_peft_model(make_base("llama"), make_config("llama"))
    model.save_pretrained(tmp_path)
    with pytest.raises(NotImplementedError, match=r"not linear.*set_adapter"):
        model.add_weighted_adapter(["default"], [0.5], "half")
    with pytest.raises(ValueError, match="DUAL_LORA"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default", torch_device="cpu")


def test_trained_tokens_travel_with_the_adapter(tmp_path):
    """TRL sets this field where a chat template adds tokens."""
    model = get_peft_model(make_base("llama"), make_config("llama", trainable_token_indices={"embed_tokens": [3, 5]}))
    train_a_little(model.train())
    expected = logits(model.eval())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make_base("llama"), tmp_path)), expected)
    changed = model.get_input_embeddings()(torch.arange(8)) != make_base("llama").get_input_embeddings()(
        torch.arange(8)
    )
    assert changed.any(1).nonzero().flatten().tolist() == [3, 5]


def test_evaluation_of_torchs_own_encoder_calls_the_adapted_layers():
    """Its fast path would read the weights under them, as it does under LoRA of PEFT."""
    torch.manual_seed(0)
    base = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2)
    x, padding = torch.randn(2, 5, 16), torch.arange(5).expand(2, 5) > 3
    model = get_peft_model(base, DualLoraConfig(target_modules=["linear1", "linear2"], init_std=0.3)).eval()
    with torch.no_grad():
        found = model.base_model.model(x, src_key_padding_mask=padding)
        with model.disable_adapter():
            plain = model.base_model.model(x, src_key_padding_mask=padding)
        merged = model.merge_and_unload()(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], merged[~padding])
    assert (found - plain)[~padding].abs().max() > 0.1


def test_the_output_of_torchs_own_attention_is_refused():
    """It is never called: an adapter there would act once merged, and not before."""
    base = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(ValueError, match=r"exclude_modules=\['out_proj'\]"):
        get_peft_model(base, DualLoraConfig(target_modules=["out_proj"]))
