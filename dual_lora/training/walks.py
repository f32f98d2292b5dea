"""Steps without walks over all modules, which are an eighth to a fifth of a small model's step.

The Trainer sets the mode, drops the gradients, clips them and counts the weights anew at every step, each by visiting
every module of the model, adapters included, whatever the batch (`run.py bench walks`, on 30 layers). None of it
changes during a training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def fewer(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Let `model.train()` and `model.zero_grad()` know the modules and parameters beforehand; yield what is trained.

    Inside, none may be added or removed. Whatever sets the mode of a part of the model, `train()` notices.
    """
    parameters, modules = list(model.parameters()), list(model.modules())
    set_mode, fill_with_zeros = model.train, model.zero_grad

    def train(mode: bool = True) -> nn.Module:
        return model if all(module.training is mode for module in modules) else set_mode(mode)

    def zero_grad(set_to_none: bool = True) -> None:
        if not set_to_none:
            fill_with_zeros(set_to_none=False)
            return
        for parameter in parameters:
            parameter.grad = None

    shadows: dict[str, Any] = {"train": train, "zero_grad": zero_grad}
    for name, method in shadows.items():
        setattr(model, name, method)
    try:
        yield [parameter for parameter in parameters if parameter.requires_grad]
    finally:
        for name in shadows:
            delattr(model, name)
