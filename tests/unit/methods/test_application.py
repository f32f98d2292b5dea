"""Methods are checked before long work, applied to what they name, and documented."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from dual_lora import methods
from dual_lora.config import ConfigError, Dimensions, MethodConfig, ModelConfig, OptimizerConfig, RecipeConfig
from dual_lora.config.choices import options
from dual_lora.methods.budget import read_method
from dual_lora.tasks.base import Head
from tests import ROOT

NAMES = options("method")
MODEL = ModelConfig(
    "unit_llama", "llama", "llama", "random", Dimensions(32, 48, 2, 2, 2, 40), target_modules=("q_proj", "up_proj")
)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, initializer_range=0.1, **sizes))


def changed(name: str, **settings) -> MethodConfig:
    method = read_method(name)
    return dataclasses.replace(method, settings=method.settings | settings)


def apply(method: MethodConfig, model: torch.nn.Module | None = None, **model_changes) -> torch.nn.Module:
    config = dataclasses.replace(MODEL, **model_changes)
    return methods.apply(model or llama(), method, model_config=config, head=Head("causal_lm"), seed=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "galore"])
def test_every_shipped_method_passes_its_check(name):
    methods.check(read_method(name))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (changed("lora", lora_alhpa=3), "no setting 'lora_alhpa'; did you mean 'lora_alpha'. Legal: .*lora_dropout"),
        (changed("dual_lora", r_magnitud=3), "no setting 'r_magnitud'; did you mean 'r_magnitude'. Legal: .*init_std"),
        (changed("lora", task_type="CAUSAL_LM"), "no setting 'task_type'"),
        (changed("lora", r=0), "method.r=0: a rank is a whole number of at least 1"),
        (changed("dual_lora", r_direction=-2), "method.r_direction=-2: a rank"),
        (changed("adalora", target_r=48), "method.target_r=48 must be below method.init_r=48"),
        (changed("full", r=8), "trains everything and has no PEFT config.*remove method.r"),
        (dataclasses.replace(read_method("lora"), config_class="peft.LorraConfig"), "did you mean 'LoraConfig'"),
        (dataclasses.replace(read_method("lora"), config_class="nopackage.Config"), "cannot be imported.*PYTHONPATH"),
        (dataclasses.replace(read_method("lora"), config_class=None), "names the import path of a PEFT config"),
        (dataclasses.replace(read_method("lora"), config_class="peft.PeftModel"), "is not a PEFT config"),
        (
            dataclasses.replace(read_method("lora"), optimizer=OptimizerConfig("lora_plus", {"ration": 2})),
            "no setting method.optimizer.settings.ration; did you mean 'ratio'",
        ),
        (
            dataclasses.replace(read_method("lora"), optimizer=OptimizerConfig("lora_plus", {"ratio": 0.5})),
            "ratio=0.5: LoRA\\+ asks for at least 1",
        ),
    ],
)
def test_what_no_model_can_use_is_refused_before_one_is_loaded(method, message):
    with pytest.raises(ConfigError, match=re.compile(message, re.DOTALL)):
        methods.check(method)


@pytest.mark.parametrize(("name", "legal"), [("adalora", 0), ("galore", 1), ("lora", 4)])
def test_zero_stages_without_whole_gradients_are_refused_to_what_reads_them(name, legal):
    method = read_method(name)
    for stage in range(4):
        if stage < legal:
            methods.check_zero_stage(method, stage)
        else:
            with pytest.raises(ConfigError, match=rf"method={name} .*launch.zero_stage={stage} .*use launch=torchrun"):
                methods.check_zero_stage(method, stage)


def test_galore_without_its_package_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "galore_torch" else find(name))
    with pytest.raises(ConfigError, match=r"needs the package galore-torch. Install it: pip install .*\[galore\]"):
        methods.check(read_method("galore"))


@pytest.mark.parametrize("targets", [["q_projj"], ["q_proj", "nothing"], "model.layers.9.*", ["proj"]])
def test_target_modules_that_match_nothing_name_the_layers_there_are(targets):
    with pytest.raises(ConfigError, match="no layer of model=unit_llama.*q_proj"):
        apply(changed("lora", target_modules=targets))


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q|up)_proj", ["layers.0.self_attn.q_proj"]])
def test_target_modules_may_be_a_pattern_a_path_or_all(targets):
    assert methods.trainable_parameters(apply(changed("lora", r=2, target_modules=targets)))[0] > 0


def test_settings_outside_what_the_peft_config_takes_are_its_own_words():
    with pytest.raises(ConfigError, match="method=dual_lora: .*DualLoraConfig refuses its settings: ste ?= ?'no'"):
        apply(changed("dual_lora", ste="no"))


def test_fused_gpt2_layers_are_adapted_in_their_own_orientation():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=40, n_positions=16))
    adapted = apply(changed("lora", r=2), model, family="gpt2", target_modules=("c_attn",))
    layer = adapted.get_base_model().transformer.h[0].attn.c_attn
    assert layer.get_delta_weight("default").shape == layer.get_base_layer().weight.shape == (32, 96)


def test_lora_plus_gives_b_the_faster_rate():
    model = apply(read_method("lora_plus"))
    recipe = RecipeConfig(name="unit", global_batch=8, learning_rate=1e-4, epochs=1, weight_decay=0.1)
    optimizer = methods.create_optimizer(model, read_method("lora_plus"), recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            factor = 16 if "lora_B" in names[id(parameter)] else 1
            assert group["lr"] == pytest.approx(factor * 1e-4)
            assert group["weight_decay"] == 0.1


def adalora_training(folder: Path, resume: bool) -> tuple[torch.nn.Module, list[float]]:
    method = changed("adalora", init_r=6, target_r=2, tinit=1, tfinal=4)
    model = apply(method)
    tokens = torch.randint(2, 40, (80, 10), generator=torch.Generator().manual_seed(2))
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=10, per_device_train_batch_size=8, learning_rate=1e-2, save_steps=4,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=0, eval_strategy="steps", eval_steps=10,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:8], callbacks=methods.callbacks(method, 10)
    )
    trainer.train(resume_from_checkpoint=resume)
    with torch.no_grad():
        plain = model(input_ids=tokens[:8], labels=tokens[:8]).loss.item()
    return model, [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry] + [plain]


def test_adalora_prunes_to_its_target_and_resumes_to_the_same_numbers(tmp_path):
    whole, _ = adalora_training(tmp_path, resume=False)
    kept = [int((value != 0).sum()) for name, value in whole.named_parameters() if "lora_E" in name]
    assert sum(kept) <= 2 * len(kept), f"target rank 2 on average, got {kept}"
    for file in (tmp_path / "checkpoint-8", tmp_path / "checkpoint-10"):
        for inner in file.iterdir():
            inner.unlink()
        file.rmdir()
    resumed, _ = adalora_training(tmp_path, resume=True)
    for (name, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert one.equal(other), name


def test_adalora_validates_on_the_tasks_loss_alone(tmp_path):
    """PEFT adds the orthogonality term to every loss; a validation loss has to be comparable with other methods'."""
    _, (validated, plain) = adalora_training(tmp_path, resume=False)
    assert validated == pytest.approx(plain, abs=1e-5)
    assert plain < 4, "without the orthogonality term of about 3"


def test_adalora_schedule_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="leave no step of 5 in which AdaLoRA's budget falls"):
        methods.callbacks(changed("adalora", tinit=3, tfinal=2), total_steps=5)


def test_selected_weights_of_another_method_are_refused():
    state = methods.trainable_state(apply(changed("lora", r=2)))
    with pytest.raises(ValueError, match="weights of another method or model"):
        methods.load_trainable_state(apply(changed("dora", r=2)), state)
    with pytest.raises(ValueError, match="has shape"):
        methods.load_trainable_state(apply(changed("lora", r=3)), state)


@pytest.mark.parametrize("name", NAMES)
def test_method_has_a_page_that_names_its_rule_source_and_use(name):
    text = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[:4] == ["Update rule", "Source", "Differences and guesses", "How to run"]
    parts = dict(zip(headings, re.split(r"^## .+$", text, flags=re.MULTILINE)[1:], strict=True))
    if name != "none":
        assert re.search(r"arxiv\.org/abs/\d{4}\.\d{4,5}|openreview\.net/", parts["Source"], re.IGNORECASE)
    assert f"method={name}" in parts["How to run"]
    assert "W" in parts["Update rule"]
    for link in re.findall(r"\]\(([a-z_]+\.md)\)", text):
        assert (ROOT / "docs" / "methods" / link).is_file(), link


def test_every_page_belongs_to_a_method():
    assert sorted(path.stem for path in (ROOT / "docs" / "methods").glob("*.md")) == NAMES


@pytest.fixture
def own_package(tmp_path, monkeypatch) -> Path:
    """A user's package outside the repository, with a PEFT config of its own."""
    (tmp_path / "mypackage.py").write_text(
        "from dataclasses import dataclass\nimport peft\n\n"
        "@dataclass\nclass NarrowConfig(peft.LoraConfig):\n    r: int = 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mypackage", None)


def test_a_users_own_config_class_is_a_method(own_package):
    method = MethodConfig("narrow", "Narrow", "adapter", config_class="mypackage.NarrowConfig", parameters="r*(i+o)")
    model = apply(method)
    assert methods.trainable_parameters(model)[0] == 2 * 2 * (32 + 32 + 32 + 48)
    with pytest.raises(ConfigError, match="NarrowConfig\\) has no setting 'width'"):
        apply(dataclasses.replace(method, settings={"width": 3}))


def test_the_kernel_reaches_dual_lora_and_nothing_else():
    config = {"model_config": MODEL, "head": Head("causal_lm"), "seed": 0, "kernel": "generic"}
    assert methods.apply(llama(), read_method("dual_lora"), **config).peft_config["default"].kernel == "generic"
    methods.apply(llama(), read_method("lora"), **config)


def test_a_relative_start_is_resolved_per_layer():
    relative = apply(read_method("dual_lora_relative_std")).base_model.resolved_init_std()
    assert len(relative) == 4
    assert len(set(relative.values())) == 4, "each weight has its own scale"
    assert set(apply(read_method("dual_lora")).base_model.resolved_init_std().values()) == {0.02}


def test_a_prompt_method_needs_no_target_modules():
    method = MethodConfig("prompt", "Prompt", "adapter", "peft.PromptTuningConfig", {"num_virtual_tokens": 3})
    assert methods.trainable_parameters(apply(method))[0] == 3 * 32


@pytest.mark.parametrize("name", ["head", "lora", "dual_lora"])
def test_berts_pooler_is_trained_and_counted_with_the_head(name):
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 40}
    model = BertForSequenceClassification(BertConfig(hidden_size=32, num_labels=3, **sizes))
    bert = dataclasses.replace(MODEL, family="bert", target_modules=("query", "value"))
    head = Head("classification", num_labels=3)
    adapted = methods.apply(model, read_method(name), model_config=bert, head=head, seed=0)
    trained = {key for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert any("pooler" in key for key in trained)
    assert any("classifier" in key for key in trained)
    with_head, without_head = methods.trainable_parameters(adapted)
    assert with_head - without_head == 32 * 32 + 32 + 32 * 3 + 3
    assert any("pooler" in key for key in methods.trainable_state(adapted))
