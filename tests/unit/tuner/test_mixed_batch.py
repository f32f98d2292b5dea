"""`adapter_names`: each row of a batch has the answer of its own adapter."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn

from dual_lora.tuner.training_watch import TrainingWatch
from tests.unit.tuner.tiny_adapted_model import make_base, make_config, train_a_little

ROWS = torch.arange(2, 32).view(3, 10)
NAMES = ["first", "second", "__base__"]


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    made = get_peft_model(make_base(request.param), make_config(request.param), adapter_name="first").train()
    train_a_little(made)
    made.add_adapter("second", make_config(request.param, r_magnitude=1, subtract_start=True, dropout=0.1))
    made.set_adapter("second")
    train_a_little(made)
    return made.eval()


def answer(model: nn.Module, adapter: str) -> torch.Tensor:
    if adapter == "__base__":
        with model.disable_adapter(), torch.no_grad():
            return model(ROWS).logits
    model.set_adapter(adapter)
    with torch.no_grad():
        return model(ROWS).logits


@pytest.mark.parametrize("names", [NAMES, ["second", "second", "first"]])
def test_each_row_has_its_own_adapter(model, names):
    expected = [answer(model, name)[row] for row, name in enumerate(names)]
    with torch.no_grad():
        mixed = model(ROWS, adapter_names=names).logits
    for row, wanted in zip(mixed, expected, strict=True):
        torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(answer(model, "second"), answer(model, "second")), "nothing is left behind"
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    assert all(isinstance(hook, TrainingWatch) for hook in hooks)


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_too(model, beams):
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    alone = []
    for row, name in enumerate(NAMES[:2]):
        model.set_adapter(name)
        alone.append(model.generate(input_ids=ROWS[row : row + 1], **settings)[0])
    together = model.generate(input_ids=ROWS[:2], adapter_names=NAMES[:2], **settings)
    assert torch.equal(together, torch.stack(alone))


def test_what_cannot_be_is_refused(model):
    with pytest.raises(ValueError, match="2 names for 3 rows"):
        model(ROWS, adapter_names=NAMES[:2])
    with pytest.raises(ValueError, match="no adapter thrid; use first, second"):
        model(ROWS, adapter_names=["first", "second", "thrid"])
    with pytest.raises(ValueError, match="evaluation mode"):
        model.train()(ROWS, adapter_names=NAMES)
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="second is merged"):
        model(ROWS, adapter_names=NAMES)
