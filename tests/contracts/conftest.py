"""Turns the contract's promises into test cells, and a YAML's stated exceptions into expected failures.

A test that takes `cell` runs for every method and family; Dual LoRA's ablations, which are Dual LoRA with another
setting, run on LLaMA in the short tests and on every family in the slow ones. So do, for the promises that train a cell
anew, the other methods on one family each: every method and every family is there, and Dual LoRA on each of them.
A line `promise: reason` or `promise@family: reason` under `contract:` of a method's YAML expects that cell to fail; the
day it passes the test fails (strict), and the line goes.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import functools
import importlib.util
import warnings

import pytest
import torch

from tests.contracts import cells

torch.set_num_threads(1)
warnings.filterwarnings("ignore", module="peft")
_NO_GALORE = pytest.mark.skipif(
    importlib.util.find_spec("galore_torch") is None,
    reason="needs the extra `galore`: pip install .[galore]",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a cell together: its training is made once per process."""

    def key(item: pytest.Item) -> str:
        values = getattr(item, "callspec", None)
        return (
            next((str(value) for value in values.params.values() if isinstance(value, cells.Cell)), "")
            if values
            else ""
        )

    items.sort(key=key)


def promise_of(function_name: str) -> str:
    return function_name.removeprefix("test_")


def reason_for(cell: cells.Cell, promise: str) -> str | None:
    stated = cells.exceptions()[cell.method]
    return stated.get(f"{promise}@{cell.family}") or stated.get(promise)


# A promise that trains a cell anew costs twenty times one that looks at the trained cell.
TRAIN_ANEW = {
    "gradient_checkpointing_changes_nothing",
    "accumulation_changes_nothing",
    "autocast_changes_little",
    "training_repeats",
    "merged_equals_unmerged_in_bfloat16",
    "unmerge_restores_every_bit",
    "evaluating_merged_restores_every_bit",
}


@functools.cache
def short_families(method: str, promise: str) -> tuple[str, ...]:
    """The families on which the short tests hold a method to a promise."""
    if method.startswith("dual_lora_"):
        return ("llama",)
    if method == "dual_lora" or promise not in TRAIN_ANEW:
        return cells.FAMILIES
    possible = [family for family in cells.FAMILIES if not reason_for(cells.Cell(method, family), "applies")]
    return (possible[cells.METHODS.index(method) % len(possible)],)


def _parameter(cell: cells.Cell, promise: str, *values: object):
    marks = [_NO_GALORE] if cell.config.optimizer.name == "galore_adamw" else []
    if cell.family not in short_families(cell.method, promise):
        marks.append(pytest.mark.slow)
    reason = reason_for(cell, promise)
    if reason:
        marks.append(pytest.mark.xfail(reason=reason, strict=True))
    return pytest.param(cell, *values, marks=marks, id="-".join([str(cell), *(str(value) for value in values)]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    promise = promise_of(metafunc.function.__name__)
    every = [cells.Cell(method, family) for family in cells.FAMILIES for method in cells.METHODS]
    possible = [cell for cell in every if promise == "applies" or not reason_for(cell, "applies")]
    if "adapter_cell" in metafunc.fixturenames:
        chosen = [cell for cell in possible if cell.is_adapter]
        metafunc.parametrize("adapter_cell", [_parameter(cell, promise) for cell in chosen])
    elif "training_cell" in metafunc.fixturenames:
        chosen = [cell for cell in possible if cell.config.trains != "nothing"]
        metafunc.parametrize("training_cell", [_parameter(cell, promise) for cell in chosen])
    elif "setting_cell" in metafunc.fixturenames:
        # A setting does not act differently per family: one stands for all.
        pairs = [
            _parameter(cell, f"setting_{setting}_acts", setting)
            for cell in possible
            if cell.family == "llama"
            for setting in cells.own_settings(cell.method)
        ]
        metafunc.parametrize(("setting_cell", "setting"), pairs)
    elif "dropout_cell" in metafunc.fixturenames:
        pairs = [
            _parameter(cell, promise, setting)
            for cell in possible
            for setting in cells.own_settings(cell.method)
            if "dropout" in setting
        ]
        metafunc.parametrize(("dropout_cell", "setting"), pairs)
    elif "cell" in metafunc.fixturenames:
        metafunc.parametrize("cell", [_parameter(cell, promise) for cell in possible])
