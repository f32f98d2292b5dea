"""A classification head has a rate of its own if it is given one, and Dual LoRA's direction group."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import pytest
import torch

from dual_lora import methods, models
from dual_lora.config import ConfigError, RunConfig
from dual_lora.config.compose import compose
from dual_lora.runs.resolve import resolve
from dual_lora.tasks.base import Head

GALORE = pytest.param("galore", marks=pytest.mark.skipif(find_spec("galore_torch") is None, reason="not installed"))
HEAD = Head("classification", num_labels=2)


def composed(*words: str) -> RunConfig:
    [config] = compose(
        ["model=tiny_roberta", "task=glue/rte", "data.source=sample", "recipe.learning_rate=1e-3", *words]
    )
    return config


def groups(config: RunConfig) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    loaded = models.load(config.model, HEAD, dtype="float32", seed=0)
    net = methods.apply(loaded.model, config.method, model_config=config.model, head=HEAD, seed=0)
    return net, methods.create_optimizer(net, config.method, config.recipe, config.model.target_modules)


# RoBERTa's head: a dense layer and an output layer, each with a bias.
@pytest.mark.parametrize("method", ["lora", "dual_lora", "lora_plus", "full", "head", "bitfit", GALORE])
def test_the_head_and_only_the_head_has_its_rate(method: str) -> None:
    net, optimizer = groups(composed(f"method={method}", "recipe.head_learning_rate=0.25"))
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    trained = {name: one for name, one in net.named_parameters() if one.requires_grad}
    assert rates.keys() == {id(one) for one in trained.values()}
    of_head = {name for name, one in trained.items() if rates[id(one)] == 0.25}
    assert of_head == {name for name in trained if ".classifier." in f".{name}"}
    assert len(of_head) == 4
    assert sum(trained[name].numel() for name in of_head) == models.head_parameters(composed().model, HEAD)


@pytest.mark.parametrize("method", ["lora", "lora_plus", "full"])
def test_without_one_nothing_changes(method: str) -> None:
    config = composed(f"method={method}")
    own, other = groups(config), groups(dataclasses.replace(config, recipe=config.recipe))
    described = [
        [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        for _, optimizer in (own, other)
    ]
    assert described[0] == described[1]
    same = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, head_learning_rate=1e-3))
    decays = {id(one): group["weight_decay"] for group in own[1].param_groups for one in group["params"]}
    net, apart = groups(same)
    theirs = {id(one): group["weight_decay"] for group in apart.param_groups for one in group["params"]}
    assert [decays[id(one)] for one in own[0].parameters() if one.requires_grad] == [
        theirs[id(one)] for one in net.parameters() if one.requires_grad
    ]


def test_a_head_that_is_not_there_has_no_rate() -> None:
    [config] = compose(["model=tiny_llama", "task=e2e", "data.source=sample", "recipe.head_learning_rate=1e-3"])
    with pytest.raises(ConfigError, match="which task=e2e has not"):
        resolve(config, planned=True)
    with pytest.raises(ConfigError, match=r"head_learning_rate=0.0: it must be a finite number, above 0"):
        composed("recipe.head_learning_rate=0.0")


def test_the_direction_group_and_only_it_has_its_share_of_the_rate() -> None:
    words = ("method=dual_lora_slow_direction", "recipe.head_learning_rate=0.25", "recipe.weight_decay=0.1")
    net, optimizer = groups(composed(*words))
    found = {
        id(one): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for one in group["params"]
    }
    for name, one in net.named_parameters():
        if one.requires_grad and "classifier" not in name:
            assert found[id(one)] == (2.5e-4 if "_direction_" in name else 1e-3, 0.1), name
    assert 0.25 in {rate for rate, _ in found.values()}
    plain = groups(composed("method=dual_lora", "+method.optimizer.settings.direction_rate=1"))[1]
    assert {group["lr"] for group in plain.param_groups} == {1e-3}
    for words, message in (
        (("method=lora", "+method.optimizer.settings.direction_rate=0.5"), "method=lora has no direction group"),
        (
            ("method=dual_lora", "+method.optimizer.settings.direction_rate=0"),
            "direction_rate=0: it must be a number above",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            methods.check(composed(*words).method)
