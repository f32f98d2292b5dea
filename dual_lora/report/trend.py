"""How a result moves with a swept setting: the best learning rate with σ, a difference between methods with the rank.
Or whether the reference was better at another value of it, so that another difference is to be quoted.

A best rate is where the parabola has its minimum that goes, over log₂ rate, through the best rate of the grid and its
two neighbours; at an end of the grid it is that rate, and the sentence says so. Its interval is a bootstrap over the
validation items (`records.per_item`), the same draws for all runs; seeds are averaged. A difference's slope is fitted
for each seed, and the seeds' slopes are a sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from dual_lora.report import endpoint, item_noise, labels, measured, stats
from dual_lora.report.definition import Column, Experiment, Trend
from dual_lora.report.layout import Change, Comparison, Verdict
from dual_lora.report.measured import MeasuredBlock, Row
from dual_lora.report.selection import RATE

DRAWS = 1000
_Label = Callable[[Experiment, str, Row], str]
_Optima = dict[
    str, tuple[float, np.ndarray, bool]
]  # value of `over` -> log₂ best rate, of each draw, whether at an end


def sentences(
    block: MeasuredBlock, label: _Label, comparisons: Mapping[endpoint.Key, Comparison] = MappingProxyType({})
) -> list[str]:
    """Return what a block's trend says, a sentence per method; none where records are missing.

    comparisons: what the block's endpoint says of its rows.
    """
    trend = block.experiment.block.trend
    if trend is None:
        return []
    column = block.experiment.block.column(trend.column)
    if trend.of == "reference":
        return _of_reference(block, trend, column, label, comparisons)
    if trend.of == "difference":
        asked = block.experiment.block.reference
        row = next(row for row in block.rows if row.choices["method"] == asked)
        reference = label(block.experiment, "method", row).partition(" (")[0]
        return [_sentence(change, column, reference) for change in changes(block, label)]
    return _best_rates(block, trend, column, label)


def is_smaller(block: MeasuredBlock) -> bool:
    """Whether what a block's trend `revises` is smaller than told: the reference is better at the other value."""
    trend = block.experiment.block.trend
    if trend is None or trend.of != "reference":
        return False
    column = block.experiment.block.column(trend.column)
    found = _reference_at_both(block, trend, column)[2]
    p = found.p_value() if found is not None else None
    return found is not None and p is not None and p < endpoint.LEVEL and _improves(found, column)


def _improves(found: stats.Estimate, column: Column) -> bool:
    return (found.mean > 0) == (column.better == "higher")


def _reference_at_both(block: MeasuredBlock, trend: Trend, column: Column) -> tuple[Row, Row, stats.Estimate | None]:
    """Return the reference's rows at the two values, and the second minus the first once all seeds are there."""
    asked, experiment = block.experiment.block, block.experiment
    first, second = (
        next(row for row in block.rows if row.choices["method"] == asked.reference and row.choices[trend.over] == value)
        for value in experiment.sweep[trend.over]
    )
    found = measured.difference(column, second.columns[column.label], first.columns[column.label])
    return first, second, found if found is not None and found.n == len(experiment.seeds) else None


def _of_reference(
    block: MeasuredBlock, trend: Trend, column: Column, label: _Label, comparisons: Mapping[endpoint.Key, Comparison]
) -> list[str]:
    """Say how the reference does at the second value, by a paired t test of its own, and what then is to be quoted."""
    asked, experiment = block.experiment.block, block.experiment
    first, second, found = _reference_at_both(block, trend, column)
    if found is None or (p := found.p_value()) is None:
        return []
    decimals = column.decimals + 1
    before, after = (label(experiment, "method", row) for row in (first, second))
    text = f"{column.label}, {after} minus {before}: {endpoint.with_interval(found, decimals)}, "
    text += f"{endpoint.pairs(found)}, {endpoint.p_value('p', p)} (of this test alone): "
    told, quoted = [], []
    for row in block.rows:
        comparison = comparisons.get(endpoint.key(experiment, row))
        across = measured.difference(column, row.columns[column.label], first.columns[column.label])
        if row.choices[trend.over] == second.choices[trend.over] and comparison and across and asked.endpoint:
            ours, here = label(experiment, "method", row), endpoint.with_interval(comparison.difference, decimals)
            told.append(f"{ours} minus {before} is {endpoint.with_interval(across, decimals)} on these seeds")
            quoted.append(f"{ours} minus {after}, {here}, {endpoint.words(comparison, asked.endpoint)}")
    if is_smaller(block):
        told.append(f"to be quoted is {'; '.join(quoted)}")
        return [f"{text}better. {trend.result} is smaller than told: {'; '.join(told)}."]
    verdict = "worse" if p < endpoint.LEVEL else "no difference is shown"
    return [f"{text}{verdict}. That rate takes nothing from {trend.result}: {'; '.join(told)}."]


def optimum(log_rates: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return where losses (draws, rates) are lowest over ascending log rates (rates,): (draws,), by a parabola."""
    best = losses.argmin(axis=1)
    inner = np.clip(best, 1, len(log_rates) - 2)
    rows = np.arange(len(losses))
    x0, x1, x2 = (log_rates[inner + step] for step in (-1, 0, 1))
    f0, f1, f2 = (losses[rows, inner + step] for step in (-1, 0, 1))
    below, above = (x1 - x0) * (f1 - f2), (x1 - x2) * (f1 - f0)
    flat = below == above
    shift = 0.5 * ((x1 - x0) * below - (x1 - x2) * above) / np.where(flat, 1.0, below - above)
    vertex = np.where(flat, x1, x1 - shift)
    return np.where(best == inner, vertex, log_rates[best])


def slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the least-squares slope of each row of y (draws, points) over x (points,)."""
    centred = x - x.mean()
    found: np.ndarray = y @ centred / (centred @ centred)
    return found


def _best_rates(block: MeasuredBlock, trend: Trend, column: Column, label: _Label) -> list[str]:
    found: dict[str, _Optima] = {}
    names: dict[str, str] = {}
    for method in block.experiment.sweep["method"]:
        rows = [row for row in block.rows if row.choices["method"] == method]
        names[method] = label(block.experiment, "method", rows[0]).partition(" (")[0]
        optima = {value: _optimum(rows, trend.over, value, column) for value in block.experiment.sweep[trend.over]}
        found[method] = {value: known for value, known in optima.items() if known is not None}
    if trend.against is not None:
        return [
            f"best rate, {names[method]} over {names[trend.against]}, {trend.over}={value}: {_ratio(ours, theirs)}."
            for method, optima in found.items()
            if method != trend.against
            for value, ours in optima.items()
            if (theirs := found[trend.against].get(value)) is not None
        ]
    return [
        f"best rate of {names[method]} as a power of {trend.over}: {_power(optima)}."
        for method, optima in found.items()
        if len(optima) > 2
    ]


def _optimum(rows: Sequence[Row], over: str, value: str, column: Column) -> tuple[float, np.ndarray, bool] | None:
    """Return log₂ of the best rate at one value of `over`, that of each draw, and whether it is at an end."""
    by_rate: dict[float, np.ndarray] = {}
    for row in rows:
        if row.choices[over] == value:
            held = item_noise.rows_by_seed(column, column.subset, row.records)
            tables = [rows_.table for rows_ in held.values() if rows_ is not None]
            if tables and len(tables) == len(held):
                by_rate[float(row.choices[RATE])] = np.stack(tables)
    if len(by_rate) < 3 or len({table.shape[1:] for table in by_rate.values()}) > 1:
        return None
    rates = sorted(by_rate)
    losses = np.stack([_drawn(by_rate[rate]) for rate in rates], axis=1)  # (1 + draws, rates), all items first
    drawn = optimum(np.log2(rates), losses)
    return float(drawn[0]), drawn[1:], int(losses[0].argmin()) in (0, len(rates) - 1)


def _drawn(tables: np.ndarray) -> np.ndarray:
    """Return nats per token of (seeds, items, 2), a mean over seeds: of all items, then of each draw of them."""
    sums = _weights(tables.shape[1]) @ tables  # (seeds, draws, 2)
    losses: np.ndarray = (sums[..., 0] / sums[..., 1]).mean(axis=0)
    return losses


@functools.lru_cache(maxsize=1)
def _weights(items: int) -> np.ndarray:
    """Return how often each item counts (1 + draws, items): once, then as drawn."""
    drawn = np.random.default_rng(0).multinomial(items, np.full(items, 1 / items), size=DRAWS)
    return np.concatenate([np.ones((1, items)), drawn.astype(float)])


def _power(optima: _Optima) -> str:
    x = np.log2([float(value) for value in optima])
    point = slope(x, np.array([[best for best, _, _ in optima.values()]]))[0]
    draws = slope(x, np.stack([drawn for _, drawn, _ in optima.values()], axis=1))
    rates = ", ".join(f"{2**best:.2g}{' (at an end)' if end else ''} at {v}" for v, (best, _, end) in optima.items())
    low, high = np.quantile(draws, [0.025, 0.975])
    numbers = f"{point:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
    return f"{numbers} over draws of items; {rates}"


def _ratio(ours: tuple[float, np.ndarray, bool], theirs: tuple[float, np.ndarray, bool]) -> str:
    low, high = np.quantile(2 ** (ours[1] - theirs[1]), [0.025, 0.975])
    rates = " and ".join(f"{2**best:.2g}{' (at an end)' if end else ''}" for best, _, end in (ours, theirs))
    return f"{2 ** (ours[0] - theirs[0]):.2f} [{low:.2f}, {high:.2f}] over draws of items; {rates}"


def changes(block: MeasuredBlock, label: _Label) -> list[Change]:
    """Return how each method's difference from the reference changes, where that is the block's endpoint."""
    asked, trend = block.experiment.block, block.experiment.block.trend
    if trend is None or asked.endpoint is None or not asked.decides_by_trend:
        return []
    column = asked.column(trend.column)
    found = []
    for method, rows in _against_reference(block, column, trend.over).items():
        seeds = sorted(set.intersection(*(set(pairs) for _, pairs in rows.values())))
        if len(rows) < 3 or not seeds:
            continue
        x = np.log2(list(rows))
        slopes = slope(x, np.array([[pairs[seed] for _, pairs in rows.values()] for seed in seeds]))
        estimate = stats.estimate([dict(zip(seeds, map(float, slopes), strict=True))])
        p = estimate.p_value()
        p_equal = None if trend.margin is None else estimate.p_equal(trend.margin, least=3)
        runs = [record for row, _ in rows.values() for record in (*row.records, *_reference(block, row).records)]
        late = not all(endpoint.began_after(asked.endpoint.named, record) for record in runs)
        verdict = _verdict(estimate, p, p_equal, late, column)
        first = next(iter(rows.values()))[0]
        found.append(
            Change(
                method=method,
                label=label(block.experiment, "method", first).partition(" (")[0],
                of=f"{column.label} for each doubling of the {labels.of_setting(trend.over)}",
                difference=estimate,
                p=p,
                p_equal=p_equal,
                margin=trend.margin,
                verdict=verdict,
                said=_said(verdict, trend.margin),
            )
        )
    return found


def _against_reference(
    block: MeasuredBlock, column: Column, over: str
) -> dict[str, dict[float, tuple[Row, Mapping[int, float]]]]:
    """Return method -> value of `over` -> its row and seed -> difference from the reference."""
    found: dict[str, dict[float, tuple[Row, Mapping[int, float]]]] = {}
    for row in block.rows:
        reference = block.reference(row)
        theirs = reference.columns[column.label] if reference is not None else None
        pairs = measured.pairs_of(column, row.columns[column.label], theirs)
        if pairs is not None:
            found.setdefault(row.choices["method"], {})[float(row.choices[over])] = (row, pairs[0])
    return found


def _reference(block: MeasuredBlock, row: Row) -> Row:
    found = block.reference(row)
    assert found is not None
    return found


def _verdict(found: stats.Estimate, p: float | None, p_equal: float | None, late: bool, column: Column) -> Verdict:
    if late:
        return "exploratory"
    if p is not None and p < endpoint.LEVEL:
        return "better" if (found.mean > 0) == (column.better == "higher") else "worse"
    return "equal" if p_equal is not None and p_equal < endpoint.LEVEL else "open"


def _said(verdict: Verdict, margin: float | None) -> str:
    said: dict[Verdict, str] = {
        "better": "gains with size",
        "worse": "loses with size",
        "equal": f"no change with size within ± {margin:g}" if margin else "no change with size",
        "exploratory": "runs from before the endpoint was named: no verdict",
    }
    return said.get(verdict, "neither a change with size nor its absence is shown")


def _sentence(change: Change, column: Column, reference: str) -> str:
    said = [endpoint.with_interval(change.difference, column.decimals + 1), f"{change.difference.n} seeds"]
    said += [endpoint.p_value(name, p) for name, p in (("p", change.p), ("TOST p", change.p_equal)) if p is not None]
    what, _, each = change.of.partition(" for ")
    return f"{what}, {change.label} minus {reference}, for {each}: {', '.join(said)}; {change.said}."
