"""Step 1 of a shipped recipe by the project's own path: composed, loaded, adapted, encoded, trained with its Trainer.

Only sizes are changed (`small`): the base is a stand-in of the family, the data a few rows, the global batch at most
four (256 rows show nothing that four do not, and take 64 times as long), and dropout and gradient clipping are off.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl

from dual_lora import methods, models, tasks
from dual_lora.config import OptimizerConfig, RunConfig, recipes
from dual_lora.config.compose import compose
from dual_lora.config.schedule import plan_batches
from dual_lora.evaluation import build_pipeline
from dual_lora.tasks import splits
from dual_lora.tasks.base import Head
from dual_lora.training.trainer import Data, train
from tests import compositions
from tests.known_answers import bases

DEFAULTS = tuple(name.removeprefix("default/") for name in recipes.names() if name.startswith("default/"))
RECIPES = tuple(name for name in recipes.names() if not name.startswith("default/"))
LARGEST_BATCH = 4
LARGEST_BATCH_OF_LARGE_VOCABULARIES = 2  # each token has 128,002 logits
SEED = 3  # not the default, so that a seed that is lost on the way shows


def composed(recipe: str, *words: str) -> RunConfig:
    """Compose the run that a recipe is for: MODEL/TASK/METHOD."""
    [config] = compose([*compositions.of_recipe(recipe).split(), *words])
    return config


def small(config: RunConfig, base: bases.Base, data: Path) -> RunConfig:
    """Replace the sizes of a run, and nothing that decides what is learned."""
    largest = LARGEST_BATCH_OF_LARGE_VOCABULARIES if base.dimensions.vocab_size > 100_000 else LARGEST_BATCH
    settings = {name: 0.0 if "dropout" in name else value for name, value in config.method.settings.items()}
    optimizer = config.method.optimizer
    if optimizer.name == "galore_adamw" and importlib.util.find_spec("galore_torch") is None:
        optimizer = OptimizerConfig()  # gradients come before the optimizer; GaLore is an extra
    return dataclasses.replace(
        config,
        seed=SEED,
        launch=dataclasses.replace(config.launch, device="cpu"),
        model=dataclasses.replace(
            config.model, path=str(base.folder), dimensions=base.dimensions, classifier_dropout=None
        ),
        method=dataclasses.replace(config.method, settings=settings, optimizer=optimizer),
        recipe=dataclasses.replace(
            config.recipe, global_batch=min(config.recipe.global_batch, largest), max_grad_norm=0.0
        ),
        task=dataclasses.replace(
            config.task, metrics=("BLEU",) if config.task.module in ("e2e", "webnlg", "dart") else ()
        ),
        profile=dataclasses.replace(config.profile, max_steps=1),
        data=dataclasses.replace(config.data, source="local", dir=str(data)),
    )


# Numbers of a recipe that act after the gradient of step 1, and words that act never.
_LATER = {
    "recipe": ("name", "learning_rate", "learning_rates", "epochs", "warmup_steps", "warmup_ratio", "schedule",
               "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "sources", "trials"),
    "method": ("name", "label", "optimizer", "parameters", "contract", "budget"),
    "model": ("name", "label", "source", "repository", "revision"),
}  # fmt: skip


def what_matters(config: RunConfig) -> str:
    """Return all settings that can change step 1. Recipes that agree in them share one computation."""
    return json.dumps(_that_matter(config), sort_keys=True)


def model_and_rows(config: RunConfig, head: Head) -> tuple[str, str]:
    """Return what decides which model is trained, and what decides on which rows and loss.

    Whatever adapts a model is told the method, the model and the kind of its head; no rows, no recipe. Whatever makes
    rows and losses is not told the method. Each half of a recipe is in a step that some recipe takes.
    """
    values = _that_matter(config)
    model = {name: values[name] for name in ("method", "model", "kernel")} | {"head": head.kind}
    del values["method"]
    return json.dumps(model, sort_keys=True), json.dumps(values, sort_keys=True)


def _that_matter(config: RunConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    for group, names in _LATER.items():
        for name in names:
            del values[group][name]
    return values


@functools.cache
def _loaded(model: Any, head: Any, seed: int) -> Any:
    return models.load(model, head, dtype="float32", seed=seed)


def adapted(config: RunConfig, task: Any) -> tuple[nn.Module, nn.Module, Any]:
    """Return the model as the method trains it, the base it stands on (to read only), and the tokenizer.

    Trained weights that start at zero (LoRA's B, VeRA's b) are moved a little: beside a zero, no gradient of another
    factor could be wrong.
    """
    stand_in = dataclasses.replace(
        config.model, name="stand_in", label="", source="hub", repository=None, revision=None
    )
    loaded = _loaded(stand_in, task.head, config.seed)
    model = methods.apply(
        copy.deepcopy(loaded.model),
        config.method,
        model_config=config.model,
        head=task.head,
        seed=config.seed,
        kernel=config.kernel,
    )
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0]):
            if parameter.requires_grad and "default" in name and "modules_to_save" not in name and not parameter.any():
                parameter.normal_(0.0, 0.05, generator=generator)
    return model, loaded.model, loaded.tokenizer


@contextlib.contextmanager
def as_in_step_1(model: nn.Module) -> Iterator[None]:
    """Give an annealed Sign the temperature 1 for a while; leave no gradient behind."""
    annealed = [layer for layer in model.modules() if hasattr(layer, "temperature")]
    for layer in annealed:
        layer.temperature = torch.ones(())
    yield
    for layer in annealed:
        layer.temperature = None
    model.zero_grad()


def own_copy(model: nn.Module) -> nn.Module:
    """Return a copy to train, which shares what is not trained: a vocabulary of 128,256 takes longer than a step."""
    return copy.deepcopy(model, {id(held): held for held in model.parameters() if not held.requires_grad})


class _Gradients(TrainerCallback):
    """Keeps what the optimizer is about to use."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        named = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.found.append({name: gradient.clone() for name, gradient in named if gradient is not None})

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> TrainerControl:
        control.should_save = False  # nobody will look at the checkpoint
        return control


def train_one_step(
    model: nn.Module, tokenizer: Any, config: RunConfig, task: Any, per_device_batch: int
) -> tuple[float, dict[str, Tensor]]:
    """Train one optimizer step with the project's Trainer; return its loss and the gradients before the update."""
    config = dataclasses.replace(
        config, launch=dataclasses.replace(config.launch, device="cpu", per_device_batch=per_device_batch)
    )
    seen = _Gradients()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = build_pipeline(task, tokenizer, config, folder, "float32")
        items = splits.select(task, config)
        result = train(
            model,
            config,
            Data(tokenizer, work.collator(), work.rows(items.train, "training"), []),
            batches=plan_batches(config),
            dtype="float32",
            folder=folder,
            head=task.head,
            callbacks=[seen],
        )
    [gradients] = seen.found
    [[step, loss]] = result.curves["train_loss"]
    assert step == result.steps == 1
    return loss, gradients


def task_of(config: RunConfig) -> Any:
    return tasks.load(config)
