"""A training without the warm-up of ΔW, or without fp16's loss scale, is told so; what is no such training is not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers
from packaging.version import parse
from peft import PeftModel, get_peft_model
from peft import __version__ as peft_version

from dual_lora import DualLoraConfig, set_delta_warmup, set_loss_scale
from dual_lora.tuner import training_watch
from dual_lora.tuner.warmup import default_warmup_steps
from tests.unit.tuner.tiny_adapted_model import TOKENS, make_base, make_config


def train(model: torch.nn.Module, calls: int, *, backward: bool = False) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            loss = model(TOKENS, labels=TOKENS).loss
            if backward:
                loss.backward()
    return [str(warning.message) for warning in caught if "Dual LoRA" in str(warning.message)]


def add_to(base: torch.nn.Module, config: DualLoraConfig) -> torch.nn.Module:
    try:
        base.add_adapter(config)
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"transformers {transformers.__version__} wants another PEFT: {error}")
    return base


# Without a task_type PEFT does not call the tuner, and transformers' add_adapter keeps no tuner.
WAYS = {
    "task type": lambda **given: get_peft_model(make_base("llama"), make_config("llama", **given)),
    "no task type": lambda **given: get_peft_model(make_base("llama"), make_config("llama", task_type=None, **given)),
    "add_adapter": lambda **given: add_to(make_base("llama"), make_config("llama", **given)),
}


@pytest.mark.parametrize("adapted", WAYS.values(), ids=WAYS)
def test_a_long_training_without_a_warm_up_warns_once(adapted, monkeypatch):
    monkeypatch.setattr(training_watch, "LONG_TRAINING", 3)
    model = adapted()
    assert not train(model.eval(), 3)
    assert not train(model.train(), 2)
    [warning] = train(model, 5)
    assert "DeltaWarmupCallback()" in warning
    warmed = adapted().train()
    set_delta_warmup(warmed, 1.0)
    assert not train(warmed, 5)
    assert not train(adapted(subtract_start=True).train(), 5)
    frozen = adapted().train().requires_grad_(False)
    assert not train(frozen, 5), "what is not trained needs no warm-up"


def steps(model: torch.nn.Module, count: int, *, accumulated: int = 1, **given: Any) -> list[str]:
    """Train as a loop of one's own does, and return what it was warned of."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, **given)
    said = []
    for _ in range(count):
        said += train(model, accumulated, backward=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        said += [str(warning.message) for warning in caught if "Dual LoRA" in str(warning.message)]
        optimizer.zero_grad()
    return said


@pytest.mark.parametrize("given", [{}, {"fused": True}, {"accumulated": 3}], ids=str)
@pytest.mark.parametrize("adapted", WAYS.values(), ids=WAYS)
def test_a_short_training_is_warned_as_soon_as_its_warm_up_would_have_taken_two_steps(adapted, given):
    model = adapted().train()
    assert not steps(model, 10, **given), "of ten steps the default warm-up takes one"
    assert default_warmup_steps(10) == 1
    assert default_warmup_steps(11) == 2
    [warning] = steps(model, 1, **given)
    assert "11 optimizer steps without a warm-up" in warning
    assert "DeltaWarmupCallback()" in warning
    assert not steps(model, 5, **given), "once"


def test_what_is_no_training_from_the_random_start_is_not_warned(tmp_path):
    adapted = WAYS["task type"]
    warmed = adapted().train()
    set_delta_warmup(warmed, 0.0)
    assert not steps(warmed, 12)
    assert not steps(adapted(subtract_start=True).train(), 12)
    model, other = adapted().train(), adapted().train()
    assert not train(model, 12, backward=True), "gradients alone"
    set_delta_warmup(other, 1.0)
    said = [text for _ in range(12) for text in (*train(model, 1), *steps(other, 1))]
    assert not said, "another model's training"
    model.save_pretrained(tmp_path)
    more = PeftModel.from_pretrained(make_base("llama"), tmp_path, is_trainable=True).train()
    if parse(peft_version) >= parse("0.21"):
        assert not steps(more, 12), "trained already"


@pytest.mark.parametrize("adapted", WAYS.values(), ids=WAYS)
def test_fp16_without_a_word_about_the_loss_scale_warns_once(adapted):
    model = adapted().train()
    with torch.autocast("cpu", dtype=torch.float16):
        [warning] = train(model, 3)
    assert "set_loss_scale" in warning
    told = adapted().train()
    set_loss_scale(told, 1024.0)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not train(told, 3)
