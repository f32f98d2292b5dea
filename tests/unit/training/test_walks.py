"""Steps without walks over all modules: what they spare changes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import nn
from transformers import Trainer

from dual_lora.distributed import ordered_reduce
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve
from dual_lora.training import trainer, walks
from tests import small_cells


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_training_is_the_same_to_the_last_bit(method, tmp_path):
    """Clipping acts in every step, epochs are scored in between, and gradients are accumulated over two batches."""
    more = [f"method={method}", "recipe.max_grad_norm=0.01", "recipe.learning_rate=1e-2", "launch.per_device_batch=4"]

    def train(name: str) -> dict:
        config = small_cells.config(tmp_path / name, *more, kind=small_cells.CLASSIFYING)
        record = lifecycle.run(resolve(config))
        assert record["status"] == "finished", record.get("message")
        return {**small_cells.numbers(record), "flops": record["cost"]["train_flops"], "curves": record["curves"]}

    @contextmanager
    def nothing(model):
        yield []

    def clip_all(self: Trainer, model: nn.Module) -> torch.Tensor:
        """As the Trainer does, which looks for gradients in the whole model; the norm is summed as ours is."""
        return ordered_reduce.clip(list(model.parameters()), self.args.max_grad_norm)

    ours = train("ours")
    instead = {"_clip_grad_norm": clip_all, "floating_point_ops": Trainer.floating_point_ops}
    with mock.patch.object(walks, "fewer", nothing), mock.patch.multiple(trainer._Trainer, **instead):
        theirs = train("theirs")
    assert ours == theirs
    assert ours["flops"] > 0
    assert max(value for _, value in ours["curves"]["gradient_norm"]) > 0.01, "nothing was clipped"


def test_modes_and_gradients_are_as_by_the_models_own_methods():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    model[0].requires_grad_(False)
    with walks.fewer(model) as trained:
        assert [id(parameter) for parameter in trained] == [id(p) for p in model[1].parameters()]
        for mode in (False, True, True, False, True):
            assert model.train(mode) is model
            assert {module.training for module in model.modules()} == {mode}
        model[1].eval()  # a part of the model alone, as a base model is when it is loaded
        assert model.train().training
        assert model[1][1].training
        assert model.eval() is model
        assert not model[1][1].training
        model.train()
        model(torch.ones(1, 2)).sum().backward()
        model.zero_grad(set_to_none=False)
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in trained)
        model.zero_grad()
        assert all(p.grad is None for p in model.parameters())
    assert "train" not in vars(model)
    assert "zero_grad" not in vars(model)


def test_the_models_own_methods_are_back_after_an_error():
    model = nn.Linear(1, 1)
    with pytest.raises(KeyError), walks.fewer(model):
        raise KeyError
    assert not {"train", "zero_grad"} & vars(model).keys()
