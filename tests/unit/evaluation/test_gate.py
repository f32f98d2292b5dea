"""The gate before a long evaluation lets a sound one through and names each planted fault."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dual_lora.config import DataConfig, ProtocolConfig, TaskConfig
from dual_lora.evaluation import gate, generation
from dual_lora.evaluation.gate import GateError
from dual_lora.tasks.base import Prompt
from dual_lora.tasks.commonsense import SUBSETS, Commonsense
from tests.unit.tiny_text_model import build_gpt2, build_llama

STRICT = ProtocolConfig(name="strict", task="commonsense", prompt="alpaca", loss_on="answer")
PAPER = ProtocolConfig(name="paper", task="commonsense", prompt="alpaca_indented", loss_on="all")


def build_task(protocol=STRICT):
    task = TaskConfig(name="commonsense", module="commonsense", label="", subsets=SUBSETS, headline="accuracy")
    return Commonsense(task, protocol, DataConfig(source="sample"))


def run(model, tokenizer, protocol=STRICT, task=None, **options):
    task = task or build_task(protocol)
    examples = [example for example in task.examples("test") if len(example.fields["instruction"]) < 160]
    return gate.check(model, tokenizer, task, examples, protocol, **options)


def llama(tokenizer):
    return build_llama(tokenizer, positions=1024)


@pytest.mark.parametrize("protocol", [STRICT, PAPER])
@pytest.mark.parametrize("build", [build_llama, build_gpt2])
def test_a_sound_evaluation_passes(tokenizer, build, protocol):
    measured = run(build(tokenizer, positions=1024), tokenizer, protocol, pretrained=False)
    assert measured["largest_gap"] < 0.01


def test_rounding_is_that_of_the_computation_and_not_of_weights_or_outputs(tokenizer, monkeypatch):
    """Trained weights are float32, and so are outputs behind accelerate's wrapper, where bfloat16 was computed."""
    monkeypatch.setitem(gate.TOLERANCE, torch.float32, -1.0)
    with torch.autocast("cpu", torch.bfloat16):
        run(llama(tokenizer), tokenizer, pretrained=False, dtype=torch.bfloat16)
    run(llama(tokenizer), tokenizer, pretrained=False, dtype=torch.bfloat16)
    with pytest.raises(GateError, match="at most -1.0 is rounding"):
        run(llama(tokenizer), tokenizer, pretrained=False)


def test_the_model_is_left_as_it_was(tokenizer):
    model = llama(tokenizer).train()
    run(model, tokenizer, pretrained=False)
    assert model.training
    assert "generate" not in vars(model)


def test_a_prompt_other_than_the_trained_one_is_caught(tokenizer):
    class Mismatched(Commonsense):
        def render(self, example, *, training):
            text = super().render(example, training=training)
            return text if training else Prompt(text.prompt.replace("### Response:", "### Answer:"), text.answer)

    for protocol in (STRICT, PAPER):
        good = build_task(protocol)
        task = Mismatched(
            TaskConfig(name="commonsense", module="commonsense", label="", subsets=SUBSETS, headline="accuracy"),
            protocol,
            good.data,
        )
        with pytest.raises(GateError, match="not what was trained on"):
            run(llama(tokenizer), tokenizer, protocol, task, pretrained=False)


def test_a_blank_too_many_at_the_boundary_is_caught(tokenizer):
    class Blank(Commonsense):
        def render(self, example, *, training):
            text = super().render(example, training=training)
            return text if training else Prompt(text.prompt + " ", text.answer)

    task = Blank(
        TaskConfig(name="commonsense", module="commonsense", label="", subsets=SUBSETS, headline="accuracy"),
        STRICT,
        DataConfig(source="sample"),
    )
    with pytest.raises(GateError, match="not what was trained on"):
        run(llama(tokenizer), tokenizer, task=task, pretrained=False)


@pytest.mark.parametrize("build", [build_llama, build_gpt2])
def test_a_missing_mask_is_caught(tokenizer, build, monkeypatch):
    right = generation.pad_left

    def without_mask(*arguments):
        ids, mask = right(*arguments)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr(generation, "pad_left", without_mask)
    with pytest.raises(GateError, match="attention mask is missing"):
        run(build(tokenizer, positions=1024), tokenizer, pretrained=False)


@pytest.mark.parametrize("build", [build_llama, build_gpt2])
def test_padding_on_the_right_is_caught(tokenizer, build, monkeypatch):
    def pad_right(rows, pad, device=None):
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        return ids, mask

    monkeypatch.setattr(generation, "pad_left", pad_right)
    with pytest.raises(GateError, match="padding is on the wrong side"):
        run(build(tokenizer, positions=1024), tokenizer, pretrained=False)


def test_base_weights_that_are_not_loaded_are_caught(tokenizer):
    with pytest.raises(GateError, match="base weights are not loaded"):
        run(llama(tokenizer), tokenizer, pretrained=True)


def test_weights_that_know_the_text_pass_and_a_broken_layer_does_not(tokenizer):
    """Stand-in for pretraining: a few steps on the prompts themselves, then one layer is made random again."""
    task = build_task()
    model = llama(tokenizer)
    examples = [example for example in task.examples("test") if len(example.fields["instruction"]) < 160][:12]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [tokenizer(task.render(one, training=False).prompt)["input_ids"][:96] for one in examples]
    ids, mask = generation.pad_left(rows, generation.pad_id(tokenizer))
    labels = ids.masked_fill(mask == 0, -100)
    for _ in range(60):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert gate.check(model, tokenizer, task, examples, STRICT)["base_prompt_loss"] < 0.6 * torch.log(
        torch.tensor(float(model.config.vocab_size))
    )
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    # An adapter that has forgotten the prompts is not the base's fault.
    for module in adapted.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] = 50.0
    assert gate.check(adapted, tokenizer, task, examples, STRICT)["base_prompt_loss"] < 4
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
    with pytest.raises(GateError, match="only some of them"):
        gate.check(adapted, tokenizer, task, examples, STRICT)


def test_nan_weights_are_caught(tokenizer):
    model = llama(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(GateError, match="nan nats"):
        run(model, tokenizer)
