"""Every shipped recipe optimises what it should: loss and gradients of step 1 against a computation by hand.

The project composes, loads, adapts, encodes and trains (`first_step`); `oracle` starts from the text of the data files.
Compared are the loss, the set of trained tensors, and the gradient of each, once with the global batch at once and once
in two micro-batches with unequal numbers of learned tokens. Float32, 1e-5 relative; gradients of a smoothed loss over a
real vocabulary 1e-4: torch's cross entropy adds up 50,257 equal shares of ε in float32, and the sum is off by as much.
DoRA's may be off by 1.5e-4, as its magnitudes take part: on one processor (AMD EPYC) a factor's is by 1.03e-4.

A tensor's difference is measured by its norm, against the tensor's own gradient or, where that is smaller, a fifth
of the whole gradient: where the terms of a sum cancel (a classifier's bias; of a key's bias the exact gradient is
zero), what is left has the rounding of the terms.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dual_lora.config import RunConfig
from dual_lora.tuner import set_delta_warmup
from tests import compositions
from tests.known_answers import bases, first_step, oracle, raw_data, trained_tensors

TOLERANCE = 1e-5
SMOOTHED_TOLERANCE = 1e-4
SMOOTHED_TOLERANCE_OF_DORA = 1.5e-4
Gradients = dict[str, Tensor]

# Where no file names a model or method: the default recipe of a task, and each protocol other than `paper`.
DEFAULTS = {
    "commonsense": "smollm2/commonsense/rslora",
    "e2e": "gpt2/e2e/rslora",
    "webnlg": "qwen2/webnlg/lora",
    "dart": "gpt2_medium/dart/bitfit",
    **{f"glue/{name}": f"roberta_base/glue/{name}/bitfit" for name in raw_data.GLUE},
}
OTHER_PROTOCOLS = [
    ("strict", "llama/commonsense/lora"),
    ("strict", "llama3/commonsense/lora"),
    ("strict", "qwen2/commonsense/lora"),
    ("strict", "smollm2/commonsense/dual_lora"),
    ("strict", "gpt2_medium/e2e/lora"),
    ("strict", "smollm2/e2e/lora"),
    ("strict", "gpt2/webnlg/lora"),
    ("strict", "gpt2/dart/lora"),
    ("strict", "roberta_base/glue/rte/lora"),
    ("strict", "minilm/glue/stsb/full"),
    ("restricted", "roberta_large/glue/mrpc/lora"),
]


class Bench:
    """Checkpoints, data, and what was found for each group of recipes that agree in all that matters at step 1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, list[str]] = {}
        self._longest: dict[object, int] = {}
        raw_data.write(folder / "data")

    def small(self, config: RunConfig) -> RunConfig:
        return first_step.small(config, self._base(config), self._folder / "data")

    def _base(self, config: RunConfig) -> bases.Base:
        return bases.make(config.model, self._folder)

    def problems(self, config: RunConfig, *, alone: bool = False) -> list[str]:
        """Return what is wrong with the first step of a run.

        Computed once for all runs that are alike; unless `alone`, also for runs whose halves others have.
        """
        config = self._with_a_telling_batch(self._with_the_cut_off_that_acts(self.small(config)))
        whole = (first_step.what_matters(config),)
        keys = whole if alone else first_step.model_and_rows(config, first_step.task_of(config).head)
        if not self._found.keys() >= {*keys}:
            problems = self._compare(config)
            for key in (*keys, *whole):
                self._found.setdefault(key, [f"{config.recipe.name}: {problem}" for problem in problems])
        return list(dict.fromkeys(problem for key in keys for problem in self._found[key]))

    def _with_the_cut_off_that_acts(self, config: RunConfig) -> RunConfig:
        """A cut-off that cuts no row is the same as any other that cuts none."""
        words, data = self._base(config).words, self._folder / "data"
        uncut = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, max_length_tokens=10**6))
        key = (words, config.task.name, config.protocol.name)
        if key not in self._longest:
            self._longest[key] = max(row.length for row in oracle.training_rows(uncut, data, words))
        limit = min(config.recipe.max_length_tokens, self._longest[key])
        return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, max_length_tokens=limit))

    def batch(self, config: RunConfig) -> list[oracle.Row]:
        return oracle.first_batch(oracle.training_rows(config, self._folder / "data", self._base(config).words), config)

    def _with_a_telling_batch(self, config: RunConfig) -> RunConfig:
        """Take the first seed whose first batch is padded, and has two labels or micro-batches of unequal weight."""
        rows = oracle.training_rows(config, self._folder / "data", self._base(config).words)
        seeds = [dataclasses.replace(config, seed=seed) for seed in range(config.seed, config.seed + 100)]
        for padded in (True, False):  # where all rows of every first batch are cut to one length, none is padded
            for config in seeds:
                if tells(oracle.first_batch(rows, config), padded=padded):
                    return config
        raise AssertionError(f"{config.task.name}: no first batch of a hundred seeds would show a fault")

    def _compare(self, config: RunConfig) -> list[str]:
        task = first_step.task_of(config)
        batch = self.batch(config)
        model, base, tokenizer = first_step.adapted(config, task)
        labels = task.head.num_labels if task.head.kind == "classification" else 0
        problems = differing_tensors(model, trained_tensors.expected(config, base, labels))
        if config.method.delta_warmup:
            loss, gradients = first_step.train_one_step(first_step.own_copy(model), tokenizer, config, task, len(batch))
            problems += warm_up_problems(base, batch, config, loss, gradients, regression=task.head.regression)
            config = dataclasses.replace(config, method=dataclasses.replace(config.method, delta_warmup_steps=0))
        with first_step.as_in_step_1(model):
            own = oracle.step(model, batch, config.recipe.label_smoothing, regression=task.head.regression)
        for name, rows, trained in (
            ("one batch", len(batch), first_step.own_copy(model)),
            ("two micro-batches", len(batch) // 2, model),
        ):
            found = first_step.train_one_step(trained, tokenizer, config, task, rows)
            problems += differences(name, *found, *own, gradient_tolerance(config))
        return problems


def tells(batch: list[oracle.Row], *, padded: bool = True) -> bool:
    """Whether a wrong mask, label or weight of a micro-batch would change the step."""
    first, second = (sum(row.learned for row in rows) for rows in halves(batch))
    labels = {row.label for row in batch}
    if labels == {None}:
        return first != second or not padded
    return len(labels) > 1 and (len({row.length for row in batch}) > 1 or not padded)


def halves(batch: list[oracle.Row]) -> tuple[list[oracle.Row], list[oracle.Row]]:
    return batch[: len(batch) // 2], batch[len(batch) // 2 :]


def differing_tensors(model: nn.Module, expected: trained_tensors.Shapes) -> list[str]:
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    surplus = [f"{name} {shape} is trained" for name, shape in trained.items() if expected.get(name) != shape]
    return surplus + [
        f"{name} {shape} is not trained" for name, shape in expected.items() if trained.get(name) != shape
    ]


def differences(
    name: str, loss: float, gradients: Gradients, own_loss: float, own: Gradients, tolerance: float = TOLERANCE
) -> list[str]:
    problems = []
    if not abs(loss - own_loss) <= TOLERANCE * abs(own_loss):
        problems.append(f"{name}: loss {loss:.7g}, by hand {own_loss:.7g}")
    if set(gradients) != set(own):
        problems.append(f"{name}: only one of the two has gradients of {sorted(set(gradients) ^ set(own))}")
    whole = sum(float(gradient.norm()) ** 2 for gradient in own.values()) ** 0.5
    for tensor in sorted(set(gradients) & set(own)):
        error = float((gradients[tensor] - own[tensor]).norm())
        scale = max(float(own[tensor].norm()), 0.2 * whole)
        if not error <= tolerance * scale:
            problems.append(f"{name}: gradient of {tensor} is off by {error / scale:.2g}")
    return problems


def warm_up_problems(
    base: nn.Module, batch: list[oracle.Row], config: RunConfig, loss: float, gradients: Gradients, *, regression: bool
) -> list[str]:
    """At step 1 the factor on ΔW is 0: the loss is the base's, no factor has a gradient, the head has the base's."""
    head = {name: tensor for name, tensor in gradients.items() if "dual_lowrank_" not in name}
    problems = [f"warm-up: {name} has a gradient" for name in set(gradients) - set(head) if gradients[name].any()]
    renamed = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): tensor
        for name, tensor in head.items()
    }
    plain = copy.deepcopy(base)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name in renamed)
    if not renamed:  # one tensor, so that there is something to differentiate
        next(plain.parameters()).requires_grad_(True)
    own_loss, own = oracle.step(plain, batch, config.recipe.label_smoothing, regression=regression)
    return problems + differences("warm-up", loss, renamed, own_loss, own if renamed else {})


def gradient_tolerance(config: RunConfig) -> float:
    smoothed = config.recipe.label_smoothing > 0 and config.model.dimensions.vocab_size > 10_000
    if not smoothed:
        return TOLERANCE
    return SMOOTHED_TOLERANCE_OF_DORA if config.method.settings.get("use_dora") else SMOOTHED_TOLERANCE


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("first_step")
    yield Bench(folder)
    bases.remove(folder)


def report(recipe: str, problems: list[str]) -> str:
    shown = problems[:6] + [f"and {len(problems) - 6} more"] * (len(problems) > 6)
    return "\n".join([f"recipe {recipe}: step 1 is not what it should be", *shown])


@pytest.mark.parametrize("recipe", first_step.RECIPES)
def test_first_step_of_a_recipe(recipe: str, bench: Bench) -> None:
    config = first_step.composed(recipe)
    assert config.recipe.name == recipe
    assert compositions.is_committed(compositions.of_recipe(recipe), [config]), "see tests/compositions.py"
    problems = bench.problems(config)
    assert not problems, report(recipe, problems)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", first_step.RECIPES)
def test_first_step_of_each_recipe_alone(recipe: str, bench: Bench) -> None:
    problems = bench.problems(first_step.composed(recipe), alone=True)
    assert not problems, report(recipe, problems)


@pytest.mark.parametrize("task", first_step.DEFAULTS)
def test_first_step_of_a_default_recipe(task: str, bench: Bench) -> None:
    config = first_step.composed(DEFAULTS[task])
    assert config.recipe.name == f"default/{task}"
    problems = bench.problems(config)
    assert not problems, report(config.recipe.name, problems)


@pytest.mark.parametrize(("protocol", "recipe"), OTHER_PROTOCOLS)
def test_first_step_of_another_protocol(protocol: str, recipe: str, bench: Bench) -> None:
    # Plain shuffling puts BoolQ's answers, a token shorter than all others, beside them.
    order = ["recipe.length_grouped=false"] if "commonsense" in recipe else []
    config = first_step.composed(recipe, f"protocol={protocol}", *order)
    assert config.protocol.name == protocol
    problems = bench.problems(config)
    assert not problems, report(f"{recipe} with protocol={protocol}", problems)


@pytest.mark.parametrize(
    "recipe",
    [
        "gpt2/e2e/dual_lora",
        "llama/commonsense/dual_lora",
        "llama3/commonsense/dual_lora",
        "qwen2/commonsense/dual_lora",
        "roberta_base/glue/rte/dual_lora",
        "deberta_xxl/glue/rte/dual_lora",
        "minilm/glue/rte/dual_lora",
    ],
)
def test_factors_have_the_gradients_of_the_definition(recipe: str, bench: Bench) -> None:
    """With G = ∂L/∂W of a plain model that holds W = W₀ + ΔW, the four gradients are the published products."""
    config = first_step.composed(recipe, "method.delta_warmup_steps=0")
    config = bench.small(config)
    task = first_step.task_of(config)
    batch = bench.batch(config)
    model, base, tokenizer = first_step.adapted(config, task)
    scaling = (
        config.method.settings["alpha"]
        / (config.method.settings["r_magnitude"] * config.method.settings["r_direction"]) ** 0.5
    )
    factors: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        layer, found, part = name.removeprefix("base_model.model.").partition(".dual_lowrank_")
        if found:
            factors.setdefault(layer, {})[part.removesuffix(".default.weight")[-1]] = parameter.detach().clone()
    base = copy.deepcopy(base).requires_grad_(False)
    for layer, f in factors.items():
        weight = base.get_parameter(f"{layer}.weight")
        weight += scaling * torch.relu(f["B"] @ f["A"]) * torch.where(f["D"] @ f["C"] > 0, 1.0, -1.0)
        weight.requires_grad_(True)
    _, whole = oracle.step(base, batch, config.recipe.label_smoothing, regression=task.head.regression)
    own: Gradients = {}
    for layer, f in factors.items():
        gradient, product = whole[f"{layer}.weight"], f["B"] @ f["A"]
        signs = torch.where(f["D"] @ f["C"] > 0, 1.0, -1.0)
        to_magnitude = scaling * gradient * signs * (product > 0)
        to_direction = (scaling * gradient * product.clamp(min=0)).clamp(-1, 1)
        products = {
            "magnitude_A": f["B"].T @ to_magnitude,
            "magnitude_B": to_magnitude @ f["A"].T,
            "direction_C": f["D"].T @ to_direction,
            "direction_D": to_direction @ f["C"].T,
        }
        own |= {
            f"base_model.model.{layer}.dual_lowrank_{part}.default.weight": value for part, value in products.items()
        }
    set_delta_warmup(model, 1.0)
    _, gradients = first_step.train_one_step(model, tokenizer, config, task, len(batch))
    gradients = {name: gradient for name, gradient in gradients.items() if "dual_lowrank_" in name}
    assert not differences("definition", 1.0, gradients, 1.0, own, gradient_tolerance(config)), recipe
