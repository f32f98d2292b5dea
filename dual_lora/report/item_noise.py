"""What the test items say: would other items have given another difference, whatever the seeds?

A record's `scores.per_item` has for each item what a metric is a function of, summed over items (`records.per_item`),
so the metric can be computed for any draw of items. Both methods get the same draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dual_lora.records.per_item import predictions, unpacked
from dual_lora.records.schema import Record
from dual_lora.report import measured
from dual_lora.report.definition import Column, Experiment
from dual_lora.report.layout import ItemNoise
from dual_lora.report.measured import Row

DRAWS = 4000
_CHUNK = 100  # draws at a time, which bounds the memory


@dataclass(frozen=True)
class Rows:
    metric: str
    table: np.ndarray  # (items, values)


@dataclass(frozen=True)
class _Part:
    """One subset of one task: rows (items, values) of both methods, seed by seed."""

    task: str
    metric: str
    ours: Sequence[np.ndarray]
    theirs: Sequence[np.ndarray]


def noise(experiment: Experiment, column: Column, row: Row, reference: Row) -> ItemNoise | None:
    """Return what the items say about a difference, by a two-way bootstrap; None if a record does not have them."""
    columns = [column]
    if column.average:
        panel = experiment.panels()[column.panel]
        columns = [one for one in panel[: panel.index(column)] if not one.average]
    parts = [_part(experiment, one, name, row, reference) for one in columns for name in one.subsets or (one.subset,)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    generator = np.random.default_rng(0)
    seeds = {part.task: _draws(generator, len(part.ours)) for part in known}  # subsets of a task share their runs
    subsets = Counter(part.task for part in known)
    singles, pairs, both = np.zeros(DRAWS), np.zeros(DRAWS), np.zeros(DRAWS)
    for part in known:
        ours, theirs = _drawn_scores(generator, part)
        weight = 1 / len(subsets) / subsets[part.task]
        singles += weight * theirs[:, 0]
        pairs += weight * (ours - theirs).mean(axis=1)
        both += weight * (seeds[part.task] * (ours - theirs)).sum(axis=1)
    low, high = np.quantile(both, [0.025, 0.975])
    scale = column.scale
    return ItemNoise(
        one=float(singles.std(ddof=1)) * scale,
        pair=float(pairs.std(ddof=1)) * scale,
        low=float(low) * scale,
        high=float(high) * scale,
        mcnemar=_mcnemar(known),
    )


def value(metric: str, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return a metric, unscaled, of weighted items, of one run or of several.

    rows: (..., items, values); weights: (draws, items). Returns (..., draws). Raises `KeyError` for a metric that has
    no rows.
    """
    return _METRICS[metric](rows, weights)


def mid_p(ours_only: int, theirs_only: int) -> float:
    """Return McNemar's mid-p of how often only one of two methods is right (Fagerland et al. 2013)."""
    fewer, all_ = min(ours_only, theirs_only), ours_only + theirs_only
    tail = 2 * stats.binom.cdf(fewer, all_, 0.5) - stats.binom.pmf(fewer, all_, 0.5)
    return float(min(1.0, tail))


def _part(experiment: Experiment, column: Column, subset: str | None, row: Row, reference: Row) -> _Part | None:
    task = column.task or experiment.tasks[0]
    found = [
        rows_by_seed(column, subset, [r for r in one.records if r.name("task") == task]) for one in (row, reference)
    ]
    shared = sorted(found[0].keys() & found[1].keys())
    ours, theirs = ([side[seed] for seed in shared] for side in found)
    known = [rows for rows in (*ours, *theirs) if rows is not None]
    if not shared or len(known) < 2 * len(shared) or len({rows.table.shape for rows in known}) > 1:
        return None
    return _Part(task, known[0].metric, *([rows.table for rows in side if rows is not None] for side in (ours, theirs)))


def rows_by_seed(column: Column, subset: str | None, records: Sequence[Record]) -> dict[int, Rows | None]:
    """Return seed -> rows of every record that has the column's measurement, None for one without its items."""
    found: dict[int, Rows | None] = {}
    for record in records:
        if record.status != "finished" or column.curve is not None:
            continue
        measurement = measured.find(measured.of_subset(column, subset), record)
        if measurement is None:
            continue
        metric = measured.metric_of(column, record)
        name = predictions(measurement.checkpoint, measurement.split, measurement.scoring)
        text = record.scores.per_item.get(name, {}).get(metric, {}).get(measurement.subset)
        found[record.seed] = None if text is None else Rows(metric, unpacked(text))
    return found


def _drawn_scores(generator: np.random.Generator, part: _Part) -> tuple[np.ndarray, np.ndarray]:
    """Return ours and theirs (draws, seeds) for the same draws of items."""
    # Items with the same rows in all runs are drawn as one: of 40,000 right or wrong answers few hundred patterns.
    runs = np.stack([*part.ours, *part.theirs], axis=1)  # (items, runs, values)
    patterns, which = np.unique(runs.reshape(len(runs), -1), axis=0, return_inverse=True)
    tables = np.moveaxis(patterns.reshape(len(patterns), *runs.shape[1:]), 1, 0)
    kept = []
    for start in range(0, DRAWS, _CHUNK):
        weights = _weights(generator, which, len(patterns), min(_CHUNK, DRAWS - start))
        kept.append(value(part.metric, tables, weights))
    ours, theirs = np.split(np.concatenate(kept, axis=1).T, 2, axis=1)
    return ours, theirs


def _weights(generator: np.random.Generator, which: np.ndarray, patterns: int, draws: int) -> np.ndarray:
    """Return how often each pattern is in each draw of as many items as there are, (draws, patterns).

    which: the pattern of each item. A multinomial number takes about four times as long as the index of an item.
    """
    items = len(which)
    if items > 4 * patterns:
        counts = np.bincount(which, minlength=patterns)
        return generator.multinomial(items, counts / items, size=draws).astype(float)
    drawn = which[generator.integers(items, size=(draws, items))] + patterns * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * patterns).reshape(draws, patterns).astype(float)


def _draws(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """Return the share of each seed in each draw, (draws, seeds)."""
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds


def _mcnemar(parts: Sequence[_Part]) -> float | None:
    if not all(part.metric in _RIGHT for part in parts):
        return None
    pairs = [
        (_RIGHT[part.metric](ours), _RIGHT[part.metric](theirs))
        for part in parts
        for ours, theirs in zip(part.ours, part.theirs, strict=True)
    ]
    return mid_p(
        sum(int((ours & ~theirs).sum()) for ours, theirs in pairs),
        sum(int((~ours & theirs).sum()) for ours, theirs in pairs),
    )


def _sums(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted sums over items, (..., draws, values), by one product for all runs, as many are slow."""
    by_item = np.moveaxis(rows, -2, 0)
    sums = weights @ by_item.reshape(len(by_item), -1)
    return np.moveaxis(sums.reshape(len(weights), *by_item.shape[1:]), 0, -2)


def _share(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _sums(rows, weights)[..., 0] / weights.sum(axis=1)


def _ratio(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    sums = _sums(rows, weights)
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def _correlation(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of two columns; 0 where one does not vary."""
    x, y = rows[..., 0], rows[..., 1]
    sums = _sums(np.stack([x, y, x * y, x**2, y**2], axis=-1), weights)
    mean_x, mean_y, products, squares_x, squares_y = np.moveaxis(sums / weights.sum(axis=1)[:, None], -1, 0)
    covariance = products - mean_x * mean_y
    variances = (squares_x - mean_x**2) * (squares_y - mean_y**2)
    return np.divide(
        covariance, np.sqrt(np.maximum(variances, 0)), out=np.zeros_like(covariance), where=variances > 1e-18
    )


def _bleu(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return corpus BLEU as `metrics.mteval` does: an order without a match counts 1/2^k matches."""
    orders = 4
    made = np.maximum(rows[..., orders : orders + 1] - np.arange(orders), 0)
    sums = _sums(np.concatenate([rows, made], axis=-1), weights)
    matched, made = sums[..., :orders], sums[..., -orders:]
    tokens, closest = sums[..., orders], sums[..., orders + 1]
    missing = (matched == 0) & (made > 0)
    matched = np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), matched)
    logs = np.log(np.where(made > 0, matched, 1) / np.where(made > 0, made, 1)).sum(axis=-1) / orders
    penalty = np.minimum(0.0, 1 - closest / np.maximum(tokens, 1))
    return np.where(tokens > 0, np.exp(logs + penalty), 0.0)


_METRICS = {
    "accuracy": _share,
    "accuracy_normalised": _share,
    "matthews_correlation": _correlation,  # of two binary variables it is the same number
    "pearson": _correlation,
    "BLEU": _bleu,
    "loss": _ratio,
}
_RIGHT = {
    "accuracy": lambda rows: rows[:, 0] == 1,
    "accuracy_normalised": lambda rows: rows[:, 0] == 1,
    "matthews_correlation": lambda rows: rows[:, 0] == rows[:, 1],
}
