"""What a run with `diagnostics=on` saw inside its updates, read from its record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dual_lora.records.schema import Record

PREFIX = "diagnostics."  # of a measure's name, where a column names a curve


def report(record: Record) -> Mapping[str, Any]:
    """Return a record's diagnostics, empty where there are none."""
    return record.curves.get("diagnostics") or {}


def mean(record: Record, measure: str) -> float | None:
    """Return the mean of a measure over the watched steps, or over the layers of one at the end; None without it."""
    held = report(record)
    points = (by_step(held, measure) or by_layer(held, measure)) if held else []
    values = [value for _, value in points if value is not None]
    return math.fsum(values) / len(values) if values else None


def by_step(report: Mapping[str, Any], measure: str) -> list[list[float | None]]:
    """Return [step, value]: a share of the entries of all layers, or a size over ‖W₀‖ of all layers together."""
    layers = [layer for layer in report["layers"].values() if measure in layer["series"]]
    points: list[list[float | None]] = []
    for place, step in enumerate(report["steps"] if layers else []):
        held = [(layer, value) for layer in layers if (value := layer["series"][measure][place]) is not None]
        if measure.endswith(("_ratio", "_step")):
            norm = math.hypot(*(layer["weight_norm"] for layer, _ in held))
            points.append([step, math.hypot(*(value * layer["weight_norm"] for layer, value in held)) / norm])
        elif held:
            sizes = [math.prod(layer["shape"]) for layer, _ in held]
            parts = [value * size for (_, value), size in zip(held, sizes, strict=True)]
            points.append([step, math.fsum(parts) / sum(sizes)])
    return points


def by_layer(report: Mapping[str, Any], measure: str) -> list[list[float | None]]:
    """Return [number of the layer, value] of a measure at the end; a numerical rank as a share of the largest."""
    points: list[list[float | None]] = []
    for place, layer in enumerate(report["layers"].values(), start=1):
        value = {**layer.get("final", {}), **layer.get("agreement", {})}.get(measure)
        if value is not None:
            points.append([place, value / min(layer["shape"]) if measure.endswith("numerical_rank") else value])
    return points
