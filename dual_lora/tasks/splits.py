"""Which items a run trains on and is scored on: the task's splits, bounded by the profile, held out by the protocol."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dual_lora.config import ConfigError, DataError, RunConfig
from dual_lora.tasks.base import Example, Task

_SUBSET_SEED = 20251203  # the same items for every method and seed, so that differences are paired


@dataclass(frozen=True)
class Items:
    """The examples of one run."""

    train: list[Example]
    validation: list[Example]  # its loss (and, for classification, its score) is followed during training
    held_out: list[Example]  # split off the training set, to choose an epoch honestly
    test: list[Example]


def select(task: Task, config: RunConfig) -> Items:
    """Return the run's items. Raises `DataError` for an empty split, `ConfigError` for an impossible hold-out."""
    profile, protocol = config.profile, config.protocol
    trains = config.method.trains != "nothing"
    train = task.examples("train") if trains else []
    # The validation loss of a language model means something without training, a classifier's score does not.
    validation = task.examples("validation") if trains or task.head.kind == "causal_lm" else []
    test = task.examples("test")
    if protocol.validation_part != "all":
        validation = _part(validation, task, config)
    if trains and not train:
        raise DataError(f"task={task.name}: the training split is empty")
    if not test:
        raise DataError(f"task={task.name}: the test split is empty")
    if profile.test_items == 0 and not trains:
        raise ConfigError(
            f"profile={profile.name} scores no test item (profile.test_items=0) and method={config.method.name} trains "
            "nothing: nothing would be measured; use another method or profile"
        )
    held_out: list[Example] = []
    if trains and protocol.validation_fraction:
        train, held_out = hold_out(train, protocol.validation_fraction, protocol.validation_seed)
    if profile.test_items == 0 and not (held_out if task.head.kind == "classification" else validation):
        raise ConfigError(
            f"profile={profile.name} scores no test item (profile.test_items=0), and protocol={protocol.name} of "
            f"task={task.name} holds out no validation examples: nothing would be measured; use protocol=strict"
        )
    return Items(
        train=_bounded(train, profile.train_examples),
        validation=_bounded(validation, profile.validation_examples),
        held_out=_bounded(held_out, profile.validation_examples),
        test=_bounded_per_subset(test, profile.test_items),
    )


def _part(validation: list[Example], task: Task, config: RunConfig) -> list[Example]:
    """Return the validation items that settings are chosen by, or the others, which report what was chosen.

    The same draw for every method and seed. Raises `ConfigError` where there are no two parts.
    """
    protocol, wanted = config.protocol, config.protocol.selection_examples
    if task.head.kind == "classification":
        raise ConfigError(
            f"protocol.validation_part={protocol.validation_part}: task={task.name} has its parts already, the tenth "
            "of the training set that protocol=strict holds out to choose by, the development set to report; use all"
        )
    if wanted is None or not 0 < wanted < len(validation):
        raise ConfigError(
            f"protocol.validation_part={protocol.validation_part} with protocol.selection_examples={wanted}: "
            f"task={task.name} has {len(validation)} validation items here, and both parts need some; give a number "
            "from 1 to one less than these, or validation_part=all"
        )
    chosen = {id(example) for example in _bounded(validation, wanted)}
    return [one for one in validation if (id(one) in chosen) is (protocol.validation_part == "select")]


def planned_train_examples(task: Task, config: RunConfig) -> int:
    """Return how many examples a run would train on, from the published counts where the data is on the hub."""
    count = task.published_train_examples() if config.data.source == "hub" else len(task.examples("train"))
    if config.protocol.validation_fraction:
        count -= round(config.protocol.validation_fraction * count)
    return min(count, config.profile.train_examples or count)


def hold_out(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split off `fraction` of the training set at random: (rest, held out), both in the data's order.

    The draw depends on seed and number of items only: the same items are held out for every method and training seed.
    Raises `ConfigError` unless both parts have an item.
    """
    count = round(fraction * len(examples))
    if not 0 < count < len(examples):
        raise ConfigError(
            f"protocol.validation_fraction={fraction} of {len(examples)} training examples leaves one part empty"
        )
    chosen = set(random.Random(seed).sample(range(len(examples)), count))
    rest = [example for place, example in enumerate(examples) if place not in chosen]
    return rest, [example for place, example in enumerate(examples) if place in chosen]


def _bounded(examples: list[Example], count: int | None) -> list[Example]:
    if count is None or count >= len(examples):
        return examples
    places = sorted(random.Random(_SUBSET_SEED).sample(range(len(examples)), count))
    return [examples[place] for place in places]


def _bounded_per_subset(examples: list[Example], count: int | None) -> list[Example]:
    if not count:
        return examples if count is None else []
    subsets: dict[str, list[Example]] = {}
    for example in examples:
        subsets.setdefault(example.subset, []).append(example)
    return [example for group in subsets.values() for example in _bounded(group, count)]
