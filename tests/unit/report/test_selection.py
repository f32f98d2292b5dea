"""Which of several variants of a cell is shown."""

from __future__ import annotations

from typing import Any

import pytest

from dual_lora.records.schema import Record, parse
from dual_lora.report import selection
from tests.unit.report.report_builder import record


def trial(rate: float, hour: int, **more: Any) -> Record:
    """A run that finished at an hour of the day; the later, the better it scored."""
    value = record("lora", 0, {"boolq": hour / 10}, learning_rate=rate, **more)
    value["origin"]["finished"] = f"2026-01-01T0{hour}:00:00"
    return parse(value)


def shown(*runs: Record) -> list[float]:
    found, _ = selection.of_row(runs, {"method": "lora"}, "commonsense")
    return [run.identity["recipe"]["learning_rate"] for run in found]


@pytest.mark.parametrize("hours", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_of_trials_with_one_seed_each_the_one_that_became_the_recipe_is_shown(hours):
    """The recipe smollm2/commonsense/lora says 1e-3; neither the latest nor the best may stand for it."""
    assert shown(*(trial(rate, hour) for rate, hour in zip((1e-3, 4e-3, 5e-4), hours, strict=True))) == [1e-3]


@pytest.mark.parametrize("recipe", ["", "no/such/recipe", "../../pyproject"])
def test_without_a_recipe_of_that_name_the_latest_is_shown(recipe):
    assert shown(trial(1e-3, 1, recipe=recipe), trial(4e-3, 3, recipe=recipe), trial(5e-4, 2, recipe=recipe)) == [4e-3]


@pytest.mark.parametrize("rate", [1e-3, 4e-3])
@pytest.mark.parametrize("hours", [(1, 2), (2, 1)])
def test_a_setting_that_the_recipe_does_not_know_never_stands_for_the_one_without(rate, hours):
    """Another study's runs at the same rate, with a rate of their own for the head, took the place of the table's."""
    plain, other = (trial(rate, hour) for hour in hours)
    other.identity["recipe"]["head_learning_rate"] = 0.5
    found, beside = selection.of_row([plain, other], {"method": "lora"}, "commonsense")
    assert found == [plain]
    assert beside == ["1 with recipe.head_learning_rate=0.5 (shown: None)"]
