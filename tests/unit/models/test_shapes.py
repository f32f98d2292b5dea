"""`plan=true` counts from the numbers in a model's YAML; the counts are those of the real architectures and papers."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from dual_lora.config import ConfigError, ModelConfig
from dual_lora.models import adapted_layer_shapes, count_parameters, gpt2, load
from dual_lora.models.architecture import transformers_config
from dual_lora.models.shapes import CAUSAL_FAMILIES
from dual_lora.tasks.base import Head
from tests.unit.models.shipped import FOLDER, model_config

NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
GENERATE = Head("causal_lm")
CLASSIFY = Head("classification", num_labels=3)
REGRESS = Head("classification", num_labels=1, regression=True)


def without_weights(model: ModelConfig, head: Head) -> torch.nn.Module:
    """Build what transformers builds for this architecture, on the meta device."""
    auto = transformers.AutoModelForCausalLM
    settings = {}
    if head.kind == "classification":
        auto = transformers.AutoModelForSequenceClassification
        settings = {"num_labels": head.num_labels}
    with torch.device("meta"):
        net = auto.from_config(transformers_config(model, **settings))
        return gpt2.split_attention(net) if model.split_fused_attention else net


def test_every_name_that_others_rely_on_has_a_yaml() -> None:
    design = "smollm2 minilm tiny_gpt2 tiny_roberta tiny_deberta tiny_llama gpt2_medium gpt2_large roberta_base "
    design += "roberta_large deberta_xxl deberta_v3_base llama llama_13b llama2 llama3 llama3_70b qwen2 gpt2"
    known_answers = "small_gpt2 small_llama small_roberta small_deberta small_bert"
    assert sorted(f"{design} {known_answers}".split()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_yaml_is_a_model_config_named_like_its_file(name: str) -> None:
    model = model_config(name)
    assert model.name == name
    assert model.source == "random" or (model.repository and model.revision)


@pytest.mark.parametrize("head", [GENERATE, CLASSIFY, REGRESS], ids=["generate", "classify", "regress"])
@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_architecture(name: str, head: Head) -> None:
    model = model_config(name)
    if head is GENERATE and model.family not in CAUSAL_FAMILIES:
        with pytest.raises(ConfigError, match="model=smollm2"):
            count_parameters(model, head)
        return
    real = sum(parameter.numel() for parameter in without_weights(model, head).parameters())
    assert count_parameters(model, head) == real


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt2", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("llama", 6_738_415_616),
        ("llama_13b", 13_015_864_320),
        ("llama2", 6_738_415_616),
        ("llama3", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("qwen2", 494_032_768),
        ("smollm2", 134_515_008),
    ],
)
def test_parameters_are_those_on_the_model_card(name: str, published: int) -> None:
    assert count_parameters(model_config(name), GENERATE) == published


@pytest.mark.parametrize("name", NAMES)
def test_linear_layers_are_those_of_the_architecture(name: str) -> None:
    model = model_config(name)
    net = without_weights(model, CLASSIFY)
    real = {}
    for layer_name, layer in net.named_modules():
        if isinstance(layer, torch.nn.Linear):
            real[layer_name] = (layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):
            real[layer_name] = (layer.nx, layer.nf)
    head = [layer_name for layer_name in real if layer_name.split(".")[0] in ("score", "classifier")]
    for layer_name in head:
        del real[layer_name]
    counted = {
        layer.name: (layer.in_features, layer.out_features) for layer in adapted_layer_shapes(model, "all-linear")
    }
    assert counted == real


@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_roberta", "tiny_deberta"])
def test_adapted_layers_are_those_that_peft_adapts(name: str, targets: str | None) -> None:
    model = model_config(name)
    net = load(model, CLASSIFY, dtype="float32", seed=0).model
    chosen = targets or list(model.target_modules)
    adapted = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=chosen, task_type="SEQ_CLS"))
    real = [
        layer_name.removeprefix("base_model.model.")
        for layer_name, layer in adapted.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    ]
    assert sorted(layer.name for layer in adapted_layer_shapes(model, targets)) == sorted(real)


def test_lora_of_rank_4_on_gpt2_medium_has_the_published_size() -> None:
    layers = adapted_layer_shapes(model_config("gpt2_medium"))
    assert len(layers) == 48
    assert sum(4 * (layer.in_features + layer.out_features) for layer in layers) == 393_216  # 0.39M


def test_lora_of_rank_32_on_llama_7b_has_the_published_share() -> None:
    model = model_config("llama")
    trainable = sum(32 * (layer.in_features + layer.out_features) for layer in adapted_layer_shapes(model))
    assert trainable == 56_098_816
    assert round(100 * trainable / count_parameters(model, GENERATE), 2) == 0.83  # LLM-Adapters, DoRA: 0.83 %


def test_targets_that_match_nothing_name_the_nearest_and_all_legal_ones() -> None:
    with pytest.raises(ConfigError, match=r"'q_prj' matches no layer.*did you mean 'q_proj'.*down_proj.*all-linear"):
        adapted_layer_shapes(model_config("tiny_llama"), ["q_prj"])


def test_a_fused_gpt2_has_no_query_of_its_own() -> None:
    with pytest.raises(ConfigError, match="c_attn"):
        adapted_layer_shapes(model_config("gpt2", split_fused_attention=False))
