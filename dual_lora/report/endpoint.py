"""What a page may claim: each block has one endpoint, and all endpoints of a page share one error rate.

A method is called better or worse than the reference by the paired t test of the endpoint, adjusted by Holm over every
method and block of the page, from `stats.MIN_PAIRS` pairs on, never where the score is at chance, and only by runs that
began after the endpoint was named. It is called equal by two one-sided tests against the margin that the experiment
file states. Everything else is shown as a difference with its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from dual_lora.records.schema import Record
from dual_lora.report import item_noise, measured, neighbours, stats
from dual_lora.report.definition import Column, Endpoint, Experiment
from dual_lora.report.layout import Comparison, ItemNoise, Verdict
from dual_lora.report.measured import MeasuredBlock, Row
from dual_lora.report.published import Published

LEVEL = 0.05
Key = tuple[str, tuple[tuple[str, str], ...]]  # experiment, choices of a row


@dataclass(frozen=True)
class _Raw:
    """A comparison before the other endpoints of the page are known."""

    comparison: Comparison
    column: Column
    at_chance: bool
    named_late: bool  # after a run had begun


def key(experiment: Experiment, row: Row) -> Key:
    """Return what names a row of a page."""
    return experiment.name, tuple(row.choices.items())


def compare(blocks: Sequence[MeasuredBlock]) -> dict[Key, Comparison]:
    """Return the comparison of every row that has one, p values adjusted over the whole page."""
    raw = {
        key(block.experiment, row): found
        for block in blocks
        if block.experiment.block.endpoint is not None
        for row in block.rows
        if (found := _raw(block, block.experiment.block.endpoint, row)) is not None
    }
    p_values = _adjusted({name: found.comparison.p for name, found in raw.items()})
    equal = _adjusted({name: found.comparison.p_equal for name, found in raw.items()})
    made = {}
    for name, found in raw.items():
        comparison = replace(found.comparison, p=p_values.get(name), p_equal=equal.get(name))
        made[name] = replace(comparison, verdict=_verdict(comparison, found))
    return made


def sentence(comparison: Comparison, experiment: Experiment, label: str, reference: str) -> str:
    """Return what the endpoint says of one method, in one line."""
    endpoint = experiment.block.endpoint
    assert endpoint is not None
    decimals = experiment.block.column(endpoint.column).decimals + 1
    found = comparison.difference
    text = f"{endpoint.column}, {label} against {reference}: {with_interval(found, decimals)}, {pairs(found)}"
    named = {"Holm p": comparison.p, "sign-flip p": comparison.sign_flip, "TOST Holm p": comparison.p_equal}
    tests = [p_value(name, value) for name, value in named.items() if value is not None]
    if comparison.blocked is not None:
        tests.append(f"blocked {with_interval(comparison.blocked, decimals)}, df {comparison.blocked.df:.0f}")
    tests += _items(comparison.items, decimals)
    if comparison.detectable is not None:
        tests.append(f"detectable by the spread of {stats.MIN_PAIRS} pairs {comparison.detectable:.{decimals}f}")
    return f"{text}; {'; '.join([*tests, words(comparison, endpoint)])}."


def brief(said: str) -> str:
    """Return what `sentence` says without its tests: the difference, its interval and the verdict."""
    first, *_, verdict = said.split("; ")
    return f"{first}; {verdict}"


def stated(comparison: Comparison, experiment: Experiment, value: Published, label: str) -> list[str]:
    """Say whether a difference that a paper states of the endpoint's column is in ours; nothing without an interval."""
    endpoint, interval = experiment.block.endpoint, comparison.difference.interval()
    if endpoint is None or interval is None or value.task not in experiment.block.column(endpoint.column).published:
        return []
    hand = ", read second-hand" if value.second_hand else ""
    where = "in" if interval[0] <= value.value <= interval[1] else "not in"
    return [f"The difference stated for {value.model} ({value.value:+g}{hand}) is {where} {label}'s interval."]


def words(comparison: Comparison, endpoint: Endpoint) -> str:
    """Return what the endpoint says of one method, without its numbers."""
    said: Mapping[Verdict, str] = {
        "better": "better",
        "worse": "worse",
        "equal": f"equal within ± {endpoint.margin:g}" if endpoint.margin else "equal",
        "open": "neither a difference nor equality is shown" if endpoint.margin else "no difference is shown",
        "at chance": "at chance: no verdict",
        "exploratory": "runs from before the endpoint was named: no verdict",
        "too few pairs": f"fewer than {stats.MIN_PAIRS} pairs: no verdict",
    }
    return said[comparison.verdict]


def _items(found: ItemNoise | None, decimals: int) -> list[str]:
    """Return how much of the difference is the draw of the test items."""
    if found is None:
        return []
    said = [
        f"by the draw of test items one run has sd {found.one:.{decimals}f}, the difference {found.pair:.{decimals}f}"
    ]
    if found.low is not None and found.high is not None:
        limits = f"[{found.low:+.{decimals}f}, {found.high:+.{decimals}f}]"
        said.append(f"over items and seeds {limits.replace('-', '−')}")
    return said if found.mcnemar is None else [*said, p_value("McNemar mid-p", found.mcnemar)]


def with_interval(found: stats.Estimate, decimals: int) -> str:
    """Return "+0.21 [-0.17, +0.59]" with typographic minus signs, or the mean alone where there is no interval."""
    interval = found.interval()
    limits = f" [{interval[0]:+.{decimals}f}, {interval[1]:+.{decimals}f}]" if interval else ""
    return f"{found.mean:+.{decimals}f}{limits}".replace("-", "−")


def _raw(block: MeasuredBlock, endpoint: Endpoint, row: Row) -> _Raw | None:
    reference = block.reference(row)
    column = block.experiment.block.column(endpoint.column)
    ours = row.columns[column.label]
    shared = measured.pairs_of(column, ours, reference.columns[column.label]) if reference else None
    if reference is None or shared is None or any(record.untrained for record in row.records):
        return None
    found = stats.estimate(shared)
    noise = item_noise.noise(block.experiment, column, row, reference)
    comparison = Comparison(
        difference=found,
        p=found.p_value(),
        sign_flip=stats.sign_flip(shared),
        p_equal=None if endpoint.margin is None else found.p_equal(endpoint.margin),
        blocked=_blocked(block, endpoint, row) if found.interval() else None,
        items=noise if noise is None or found.interval() else replace(noise, low=None, high=None),
        verdict="open",
        detectable=stats.detectable(shared, len(block.experiment.seeds)),
    )
    records = [*row.records, *reference.records]
    return _Raw(comparison, column, "c" in ours.marks, not all(began_after(endpoint.named, r) for r in records))


def began_after(named: datetime, record: Record) -> bool:
    """Whether a run began when an endpoint had been named."""
    span = neighbours.span(record)
    return span is not None and span[0] >= named


def _blocked(block: MeasuredBlock, endpoint: Endpoint, row: Row) -> stats.Estimate | None:
    """Return the endpoint's difference with the variance of all methods of the row's model; None if it adds nothing."""
    column = block.experiment.block.column(endpoint.column)
    methods = {}
    for other in block.rows:
        method = other.choices["method"]
        wanted = endpoint.blocked is None or method in endpoint.blocked
        same = {**other.choices, "method": ""} == {**row.choices, "method": ""}
        trained = not any(record.untrained for record in other.records)
        if wanted and same and trained and other.columns[column.label].measured:
            methods[method] = other.columns[column.label].scaled(column.scale)
    ours, reference = row.choices["method"], str(block.experiment.block.reference)
    if len(methods) < 3 or ours not in methods or reference not in methods:
        return None
    return stats.blocked(methods, ours, reference)


def _adjusted(p_values: Mapping[Key, float | None]) -> dict[Key, float]:
    known = {name: p for name, p in p_values.items() if p is not None}
    return dict(zip(known, stats.holm(list(known.values())), strict=True))


def _verdict(comparison: Comparison, raw: _Raw) -> Verdict:
    if raw.named_late:
        return "exploratory"
    if raw.at_chance:
        return "at chance"
    if comparison.difference.n < stats.MIN_PAIRS:
        return "too few pairs"
    if comparison.p is not None and comparison.p < LEVEL:
        return "better" if (comparison.difference.mean > 0) == (raw.column.better == "higher") else "worse"
    return "equal" if comparison.p_equal is not None and comparison.p_equal < LEVEL else "open"


def pairs(found: stats.Estimate) -> str:
    """Return "25 pairs, df 9"."""
    counted = f"{found.n} pair" + ("" if found.n == 1 else "s")
    return f"{counted}, df {found.df:.0f}" if found.interval() else counted


def p_value(name: str, value: float) -> str:
    """Return "Holm p = 0.03", as small as it is told."""
    return f"{name} < 0.001" if value < 0.001 else f"{name} = {value:.{3 if value < 0.1 else 2}f}"
