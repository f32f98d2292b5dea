"""The exceptions that a method's YAML states are about promises that exist, and say why."""

from __future__ import annotations

import pytest

from tests.contracts import cells, test_promises, test_training

PROMISES = {
    name.removeprefix("test_")
    for module in (test_promises, test_training)
    for name in vars(module)
    if name.startswith("test_")
}


@pytest.mark.parametrize("method", cells.METHODS)
def test_exceptions_name_a_promise_and_a_reason(method):
    settings = {f"setting_{name}_acts" for name in cells.own_settings(method)}
    for key, reason in cells.exceptions()[method].items():
        promise, _, family = key.partition("@")
        assert promise in PROMISES | settings, f"{key}: no such promise; there are {sorted(PROMISES | settings)}"
        assert family in ("", *cells.FAMILIES), f"{key}: no such family"
        assert len(reason.split()) >= 5, f"{key}: say why"


def test_dual_lora_makes_no_exception():
    assert cells.exceptions()["dual_lora"] == {}


@pytest.mark.parametrize("method", cells.METHODS)
def test_every_setting_of_a_yaml_has_another_value_to_try(method):
    cell = cells.Cell(method, "llama")
    for setting in cells.own_settings(method):
        value, _, _ = test_training.other_value(cell, setting)
        current = cell.config.settings.get(setting, getattr(cell.config, setting, None))
        assert value != current, f"{method}: {setting} is already {value}"
