"""The life of a Dual LoRA adapter in PEFT and transformers, on tiny random models of the families that are used."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from dual_lora import DualLoraConfig, DualLoraLinear

BERT_SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LLAMA_SIZES = {**BERT_SIZES, "num_key_value_heads": 1}


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**LLAMA_SIZES))


def roberta() -> PreTrainedModel:
    return RobertaForSequenceClassification(RobertaConfig(**BERT_SIZES, num_labels=3, pad_token_id=1))


def deberta() -> PreTrainedModel:
    return DebertaV2ForSequenceClassification(DebertaV2Config(**BERT_SIZES, relative_attention=True))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {"gpt2": gpt2, "llama": llama, "roberta": roberta}
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
    "deberta-v2": ({"query_proj", "value_proj"}, deberta),
}
TOKENS = torch.arange(2, 22).view(2, 10)


def make_base(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).eval()


def make_config(name: str, **settings: object) -> DualLoraConfig:
    classifier = {"task_type": "SEQ_CLS"} if name == "roberta" else {"task_type": "CAUSAL_LM"}
    return DualLoraConfig(**{"r_magnitude": 3, "r_direction": 2, "alpha": 8, "init_std": 0.2, **classifier, **settings})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def train_a_little(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model(TOKENS).logits.float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(params=list(MODELS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


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


def test_training_moves_every_factor_and_nothing_else(family):
    base = make_base(family)
    frozen = copy.deepcopy(base.state_dict())
    model = get_peft_model(base, make_config(family)).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_a_little(model)
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        # A classification head is trained by PEFT's modules_to_save, its original stays.
        assert moved == ("dual_lora_" in name or "modules_to_save" in name), name
    model.eval()
    restored = model.unload()
    for name, value in restored.state_dict().items():
        if "classifier" not in name:  # unload keeps the trained head, as PEFT's other tuners do
            assert torch.equal(value, frozen[name]), name


def test_equal_ranks_have_the_parameters_of_lora_at_twice_the_rank():
    model = get_peft_model(make_base("llama"), DualLoraConfig(r_magnitude=3, r_direction=3))
    expected = sum(
        6 * (layer.in_features + layer.out_features) for layer in model.modules() if isinstance(layer, DualLoraLinear)
    )
    assert model.get_nb_trainable_parameters()[0] == expected


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("subtract_start", [False, True])
def test_a_saved_adapter_loads_to_the_same_output(family, dtype, low_cpu_mem_usage, subtract_start, tmp_path):
    model = get_peft_model(make_base(family, dtype), make_config(family, subtract_start=subtract_start)).train()
    train_a_little(model)
    expected = logits(model.eval())
    assert not torch.equal(expected, logits(make_base(family, dtype)))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    torch.manual_seed(99)
    loaded = PeftModel.from_pretrained(make_base(family, dtype), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), expected)
    assert all(p.dtype == torch.float32 for n, p in loaded.named_parameters() if "dual_lora_" in n)


def test_the_saved_file_holds_the_factors_and_nothing_else(tmp_path):
    model = get_peft_model(make_base("llama"), make_config("llama"))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 10 * 4
    assert {key.rsplit(".", 1)[-1] for key in saved} == {"dual_lora_A", "dual_lora_B", "dual_lora_C", "dual_lora_D"}


def test_auto_classes_load_base_and_adapter(tmp_path):
    for name, auto_class in [
        ("llama", AutoPeftModelForCausalLM),
        ("gpt2", AutoPeftModelForCausalLM),
        ("roberta", AutoPeftModelForSequenceClassification),
    ]:
        folder = tmp_path / name
        make_base(name).save_pretrained(folder / "base")
        base = MODELS[name]().from_pretrained(folder / "base")
        model = get_peft_model(base, make_config(name)).train()
        train_a_little(model)
        expected = logits(model.eval())
        model.save_pretrained(folder / "adapter")
        settings = {"num_labels": 3} if name == "roberta" else {}
        assert torch.equal(logits(auto_class.from_pretrained(folder / "adapter", **settings).eval()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transformers_load_adapter_gives_the_same_output(dtype, tmp_path):
    for name in ("llama", "gpt2"):
        folder = tmp_path / name
        model = get_peft_model(make_base(name, dtype), make_config(name, subtract_start=True)).train()
        train_a_little(model)
        expected = logits(model.eval())
        model.save_pretrained(folder)
        base = make_base(name, dtype)
        base.load_adapter(str(folder))
        assert torch.equal(logits(base.eval()), expected)
        base.disable_adapters()
        assert torch.equal(logits(base), logits(make_base(name, dtype)))


def test_disabling_gives_the_base_exactly(family):
    model = get_peft_model(make_base(family), make_config(family)).eval()
    expected, with_adapter = logits(make_base(family)), logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), with_adapter)
    assert not torch.equal(with_adapter, expected)


def test_subtract_start_starts_at_the_base(family):
    model = get_peft_model(make_base(family), make_config(family, subtract_start=True)).eval()
    torch.testing.assert_close(logits(model), logits(make_base(family)), rtol=0, atol=0)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name in trainable if "start" in name]


def test_several_adapters_switch_add_up_and_go(family):
    model = get_peft_model(make_base(family), make_config(family), adapter_name="first").eval()
    model.add_adapter("second", make_config(family, r_magnitude=1, r_direction=4, ste="identity"))
    first = logits(model)
    model.set_adapter("second")
    second = logits(model)
    assert not torch.equal(first, second)
    model.set_adapter("first")
    assert torch.equal(logits(model), first)
    if family != "roberta":  # two adapters that both save a head cannot be active at once, a rule of PEFT
        model.base_model.set_adapter(["first", "second"])
        both = logits(model)
        layers = [module for module in model.modules() if isinstance(module, DualLoraLinear)]
        with torch.no_grad():
            for layer in layers:
                layer.weight.add_(layer.get_delta_weight("first") + layer.get_delta_weight("second"))
        with model.disable_adapter():
            torch.testing.assert_close(both, logits(model), rtol=1e-4, atol=1e-5)
    model.set_adapter("second")
    model.delete_adapter("first")
    assert list(model.peft_config) == ["second"]
    assert not [name for name, _ in model.named_parameters() if "first" in name]


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


def test_modules_to_save_are_trained_and_travel_with_the_adapter(tmp_path):
    config = make_config("llama", modules_to_save=["lm_head"])
    model = get_peft_model(make_base("llama"), config).train()
    train_a_little(model)
    expected = logits(model.eval())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make_base("llama"), tmp_path)), expected)


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("dual_lora_only", 2 * 2), ("all", 2 * 6 + 1)])
def test_bias_settings(bias, expected, tmp_path):
    """Each of the two layers has six biases, two of them in adapted modules; the final norm has one."""
    model = get_peft_model(make_base("gpt2"), make_config("gpt2", bias=bias, target_modules=["c_attn", "c_fc"])).train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "bias" in name]
    assert len(trained) == expected
    train_a_little(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base("gpt2"), tmp_path)
    assert torch.equal(logits(loaded), logits(model.eval()))


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
        torch.testing.assert_close(checkpointed, plain, rtol=1e-6, atol=1e-9)


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


def test_torch_compile_gives_the_same_output_and_gradients():
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
