"""The figures' numbers that no table of the page holds: swept settings, diagnostics, and speed from a benchmark."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_lora.page.values import number, plain
from dual_lora.records import UNREADABLE
from dual_lora.report.figures import KINDS, Figure

_AXES = {"tokens": "tokens", "rank": "rank", "layer size": "out"}  # axis of the benchmark -> what varies on it
_TIMED = {"dual_lora": "Dual LoRA", "lora": "LoRA", "floor": "the three products a weight's gradient needs"}


def swept(figure: Figure) -> dict[str, Any]:
    """Return a figure of a swept setting: all methods and columns in one."""
    first = figure.panels[0]
    return {
        "table": figure.table,
        "title": plain(figure.title),
        "x": first.x,
        "log": first.log_x,
        "column": first.y,
        "columns": {panel.y: {"better": panel.better, "decimals": panel.decimals} for panel in figure.panels},
        "points": [
            {
                "column": panel.y,
                "method": plain(method),
                "x": number(point.x),
                "y": number(point.y),
                "sd": None if point.high is None else number(point.high - point.y),
                "n": point.n,
                "chosen": point.chosen,
            }
            for panel in figure.panels
            for method, points in panel.lines.items()
            for point in points
        ],
    }


def inside(figure: Figure) -> dict[str, Any]:
    """Return a figure of what diagnostics measured, a list of [x, mean, low, high] for each method and panel."""
    return {
        "title": plain(figure.title),
        "panels": [
            {
                "x": panel.x,
                "y": panel.y,
                "log": panel.log_y,
                "lines": {
                    plain(method): [[number(v, 4) for v in (p.x, p.y, p.low, p.high)] for p in points]
                    for method, points in panel.lines.items()
                },
            }
            for panel in figure.panels
        ],
    }


def missing(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    """Return what is said of figures that no record gives a point: those of the same runs together."""
    waiting = (figure for figure in figures if not figure.panels)
    return [
        {"title": plain(title), "kinds": [KINDS[figure.kind] for figure in own], "commands": plain(commands)}
        for (title, commands), own in itertools.groupby(waiting, key=lambda figure: (figure.title, figure.commands))
    ]


def speed(benchmarks: Path) -> dict[str, Any] | None:
    """Return milliseconds of a layer by tokens, rank and size, from the kernels' benchmark; None if not measured."""
    path = benchmarks / "kernels.json"
    if not path.is_file():
        return None
    try:
        return _speed(json.loads(path.read_text(encoding="utf-8")))
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged ({error!r}); restore it, or move it away") from None


def _speed(found: Mapping[str, Any]) -> dict[str, Any] | None:
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
