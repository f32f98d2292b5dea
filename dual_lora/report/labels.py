"""What rows and settings are called where people read them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import yaml

from dual_lora.config.choices import Loader
from dual_lora.report.definition import Experiment
from dual_lora.report.measured import Row

_WORDS = {"method.budget": "trained weights", "method.init_std": "start σ"}
_FIXED = ("model", "task", "method", "protocol", "profile", "seed", "data.source", "data.dir")


def of_row(configs: Path, experiment: Experiment, part: str, row: Row) -> str:
    """Return a row's model or method, a method with what the sweep varies, named as the experiment does."""
    name = plain(configs, experiment, part, row)
    names = experiment.block.labels
    settings = [
        names.get(value, f"{of_setting(key)} = {value}") for key, value in varied(experiment, row.choices).items()
    ]
    return f"{name} ({', '.join(settings)})" if part == "method" and settings else name


def varied(experiment: Experiment, choices: Mapping[str, str]) -> dict[str, str]:
    """Return those of a row's settings that the sweep varies, its method not counted."""
    return {key: value for key, value in choices.items() if key not in _FIXED and len(experiment.sweep[key]) > 1}


def plain(configs: Path, experiment: Experiment, part: str, row: Row) -> str:
    """Return the experiment's own name for a row's model or method, else the record's, else the one in configs/."""
    name = row.choices[part]
    label = experiment.block.labels.get(name)
    if label is None and row.records:
        label = row.records[0].identity[part].get("label")
    if label is None:
        path = configs / part / f"{name}.yaml"
        label = _label(path)
    return str(label or name)


@functools.cache
def _label(path: Path) -> str | None:
    values = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) if path.exists() else None
    return (values or {}).get("label")


def of_setting(key: str) -> str:
    """Return a setting in words: "recipe.learning_rate" is the learning rate."""
    return _WORDS.get(key) or key.rpartition(".")[2].replace("_", " ")
