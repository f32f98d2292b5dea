"""The figures' numbers that no table of the page holds: a swept setting, and speed from a benchmark."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_lora.config import recipes
from dual_lora.page.values import number, plain
from dual_lora.records.schema import Record
from dual_lora.report import labels
from dual_lora.report.definition import Experiment
from dual_lora.report.layout import Line, TableView

_AXES = {"tokens": "tokens", "rank": "rank", "layer size": "out"}  # axis of the benchmark -> what varies on it
_TIMED = {"dual_lora": "Dual LoRA", "lora": "LoRA", "floor": "the three products a weight's gradient needs"}


def swept(view: TableView, experiments: Mapping[str, Experiment]) -> list[dict[str, Any]]:
    """Return a figure for each setting that the table's experiments plot: all methods and columns in one."""
    figures: dict[str, dict[str, Any]] = {}
    for block in view.blocks:
        experiment = experiments[block.experiment]
        asked = experiment.block.figure
        if asked is None:
            continue
        new = {
            "table": view.name,
            "title": plain(view.title),
            "x": labels.of_setting(asked.x),
            "log": asked.log_x,
            "column": asked.column,
        }
        figure = figures.setdefault(asked.x, {**new, "columns": {}, "points": []})
        definitions = {column.label: column for column in experiment.block.columns}
        several = len(experiment.sweep["model"]) > 1
        measured = [line for line in block.lines if line.source is None]
        for name, line in itertools.product(block.columns, measured):
            cell = line.cells[block.columns.index(name)]
            if cell.value is None:
                continue
            column = definitions[name]
            figure["columns"][name] = {"better": column.better, "decimals": column.decimals}
            tasks = experiment.tasks if column.average else (column.task or experiment.tasks[0],)
            chosen = [_recipe_value(record, asked.x) for record in line.records if record.name("task") in tasks]
            method = _method(experiment, line)
            figure["points"].append(
                {
                    "column": name,
                    "method": plain(f"{line.model}, {method}" if several else method),
                    "x": number(float(line.choices[asked.x])),
                    "y": number(cell.value),
                    "sd": number(cell.sd),
                    "n": cell.n,
                    "chosen": bool(chosen) and all(value == float(line.choices[asked.x]) for value in chosen),
                }
            )
    return [figure for figure in figures.values() if figure["points"]]


def _method(experiment: Experiment, line: Line) -> str:
    """Return what a row's method is called, without the settings that are swept."""
    name = line.choices["method"]
    return str(experiment.block.labels.get(name) or line.records[0].identity["method"].get("label") or name)


def _recipe_value(record: Record, setting: str) -> float | None:
    """Return what the current recipe of a run's combination says of a setting, None if it says nothing."""
    name = str((record.identity.get("recipe") or {}).get("name"))
    stated = recipes.find(name)
    if stated is None:
        return None
    value = stated.values.get(setting.removeprefix("recipe."))
    if setting == "recipe.learning_rate" and stated.rates:
        rank = record.identity["method"].get("settings", {}).get("r")
        value = stated.rates.get(f"r{rank}", stated.rates.get(record.name("method"), value))
    return float(value) if isinstance(value, int | float) else None


def speed(benchmarks: Path) -> dict[str, Any] | None:
    """Return milliseconds of a layer by tokens, rank and size, from the kernels' benchmark; None if not measured."""
    path = benchmarks / "kernels.json"
    if not path.is_file():
        return None
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows: Sequence[Mapping[str, Any]] = found.get("growth", {}).get("rows", [])
    points = [
        {
            "axis": row["axis"],
            "x": row[_AXES[row["axis"]]],
            "layer": [row["out"], row["in"], row["rank"], row["tokens"]],
            "method": label,
            "ms": number(row[name]["median_ms"], 4),
        }
        for row in rows
        if row["axis"] in _AXES
        for name, label in _TIMED.items()
        if name in row
    ]
    return {"points": points, **plain(found.get("environment", {}))} if points else None
