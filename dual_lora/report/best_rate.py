"""Where between the rates of a grid the best one is, how it grows with another setting, and how two methods' compare.

The best rate is the lowest point of the parabola through the best of the grid and its two neighbours, over the rate's
logarithm. Its interval is over draws of the validation items, the same draws for every rate, setting and method. A draw
whose best is at an end of the grid counts as that end.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dual_lora.report import item_noise, labels
from dual_lora.report.definition import Column, Experiment
from dual_lora.report.layout import Line
from dual_lora.report.selection import RATE

DRAWS = 2000
Settings = tuple[tuple[str, str], ...]  # what else the sweep varies


@dataclass(frozen=True)
class Range:
    """A number with its 95 % interval over draws of items."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BestRate:
    """A method's best rate at some settings. log2: of the items as they are, then of each draw of them."""

    method: str
    settings: Settings
    log2: np.ndarray
    at_end: bool  # of its grid

    @property
    def rate(self) -> Range:
        return _range(2.0**self.log2)


def best_rates(lines: Iterable[tuple[Experiment, Column, Line]]) -> list[BestRate]:
    """Return the best rate of each method and further settings whose records hold their items, lower being better."""
    grids: dict[tuple[str, Settings], dict[float, list[np.ndarray]]] = defaultdict(dict)
    for experiment, column, line in lines:
        rows = item_noise.rows_of(column, line.records)
        if rows and RATE in line.choices:
            rest = {k: v for k, v in labels.varied(experiment, line.choices).items() if k != RATE}
            grids[line.choices["method"], tuple(rest.items())][float(line.choices[RATE])] = rows
    shapes = {table.shape for grid in grids.values() for rows in grid.values() for table in rows}
    if len(shapes) != 1:
        return []
    [(items, _)] = shapes
    generator = np.random.default_rng(0)
    weights = np.vstack([np.ones(items), generator.multinomial(items, np.full(items, 1 / items), size=DRAWS)])
    found = []
    for (method, settings), grid in grids.items():
        if len(grid) < 3:
            continue
        rates = sorted(grid)
        losses = np.array(
            [np.mean([item_noise.value("loss", rows, weights) for rows in grid[rate]], axis=0) for rate in rates]
        )
        at_end = int(losses[:, 0].argmin()) in (0, len(rates) - 1)
        found.append(BestRate(method, settings, lowest(np.log2(rates), losses), at_end))
    return found


def lowest(x: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return where each column's lowest point is by the parabola around its minimum: x (n,), losses (n, draws)."""
    place = losses.argmin(axis=0)
    inner = np.clip(place, 1, len(x) - 2)
    draws = np.arange(losses.shape[1])
    x0, x1, x2 = (x[inner + k] for k in (-1, 0, 1))
    y0, y1, y2 = (losses[inner + k, draws] for k in (-1, 0, 1))
    over = (x1 - x0) ** 2 * (y1 - y2) - (x1 - x2) ** 2 * (y1 - y0)
    under = (x1 - x0) * (y1 - y2) - (x1 - x2) * (y1 - y0)
    vertex = x1 - 0.5 * np.divide(over, under, out=np.zeros_like(over), where=under != 0)
    return np.where(place == inner, vertex, x[place])


def growth(found: Sequence[BestRate]) -> dict[tuple[str, str], Range]:
    """Return (method, setting) -> slope of log best rate over the log of that setting, of three values or more."""
    groups: dict[tuple[str, str], list[BestRate]] = defaultdict(list)
    for one in found:
        if len(one.settings) == 1 and is_number(one.settings[0][1]):
            groups[one.method, one.settings[0][0]].append(one)
    slopes = {}
    for name, own in groups.items():
        if len(own) > 2:
            x = np.log2([float(one.settings[0][1]) for one in own])
            slopes[name] = _range(np.polyfit(x, np.array([one.log2 for one in own]), 1)[0])
    return slopes


def ratios(found: Sequence[BestRate], ours: str, reference: str) -> dict[Settings, Range]:
    """Return settings -> our best rate over the reference's, where both have one."""
    by_name = {(one.method, one.settings): one.log2 for one in found}
    return {
        settings: _range(2.0 ** (log2 - by_name[reference, settings]))
        for (method, settings), log2 in by_name.items()
        if method == ours and (reference, settings) in by_name
    }


def _range(values: np.ndarray) -> Range:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Range(float(values[0]), float(low), float(high))


def is_number(text: str) -> bool:
    """Whether a setting is a number, of which there are halves and doubles."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
