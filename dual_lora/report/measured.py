"""Our rows: the scores of a row's records by column and seed, and the cells made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dual_lora.config import MNLI_STARTED
from dual_lora.records.schema import Measurement, Record
from dual_lora.report import selection, stats
from dual_lora.report.definition import Column, Experiment
from dual_lora.report.layout import Cell

GIB = 1024**3
UNREADABLE_SHARE = 0.01  # above it a cell is marked


@dataclass(frozen=True)
class Scores:
    """One column of one row: seed -> score (unscaled), and what else a cell says."""

    by_seed: Mapping[int, float] = field(default_factory=dict)
    items: Mapping[int, int] = field(default_factory=dict)  # empty for an average
    marks: str = ""
    failed: Mapping[int, str] = field(default_factory=dict)  # seed -> status
    undefined: int = 0


@dataclass(frozen=True)
class Row:
    """One row of a sweep with everything its records hold."""

    choices: Mapping[str, str]
    records: tuple[Record, ...]
    columns: Mapping[str, Scores]
    not_shown: tuple[str, ...]  # other variants, in words


class AmbiguousColumnError(ValueError):
    """A column that several measurements of a record match; the message names what tells them apart."""


def measure(experiment: Experiment, records: Sequence[Record], choices: Mapping[str, str]) -> Row:
    """Return a row's scores. Raises `AmbiguousColumnError`."""
    by_task: dict[str, list[Record]] = {}
    not_shown: list[str] = []
    for task in experiment.tasks:
        by_task[task], others = selection.of_row(records, choices, task)
        not_shown += [f"{task}, {other}" for other in others] if len(experiment.tasks) > 1 else others
    columns: dict[str, Scores] = {}
    for column in experiment.block.columns:
        if column.average:
            before = [c for c in experiment.panels()[column.panel] if c.label in columns and not c.average]
            columns[column.label] = _average([columns[c.label] for c in before])
        else:
            columns[column.label] = _column(column, by_task[column.task or experiment.tasks[0]])
    unique = {record.run_id: record for task in by_task.values() for record in task}
    return Row(choices, tuple(unique.values()), columns, tuple(not_shown))


def cell(column: Column, scores: Scores, reference: Scores | None, *, median: bool) -> Cell:
    """Return what a column shows: centre and spread over seeds, bold only where the evidence allows."""
    if not scores.by_seed:
        return Cell(word=_why_empty(scores), marks="")
    scale = column.scale
    summary = stats.summarize([value * scale for value in scores.by_seed.values()], median=median)
    difference = _difference(scores, reference, scale)
    better = difference is not None and difference.significant and (difference.mean > 0) == (column.better == "higher")
    marks = scores.marks + ("f" if scores.failed else "") + ("x" if scores.undefined else "")
    return Cell(
        value=summary.center,
        sd=summary.sd,
        n=summary.n,
        decimals=column.decimals,
        bold=better,
        marks=marks,
        low=summary.low,
        high=summary.high,
        difference=None if difference is None else (difference.mean, difference.low, difference.high, difference.n),
    )


def cost(name: str, records: Sequence[Record]) -> str:
    """Return a cost column of a row: means over its finished runs, the largest for memory."""
    finished = [record for record in records if record.status == "finished"]
    if name == "peak_memory":
        peaks = [max(record.cost.peak_memory_bytes) for record in finished if record.cost.peak_memory_bytes]
        return f"{max(peaks) / GIB:.1f}" if peaks else ""
    if name == "trainable_parameters":
        return trainable(finished)
    values = [value for record in finished if (value := getattr(record.cost, name)) is not None]
    return f"{sum(values) / len(values):,.0f}" if values else ""


def trainable(records: Sequence[Record]) -> str:
    """Return the trained parameters without the head (all of them where a record does not tell them apart)."""
    counts = set()
    for record in records:
        count = record.cost.trainable_parameters_without_head
        count = record.cost.trainable_parameters if count is None else count
        if count is not None:
            counts.add(count)
    return "–".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) if counts else ""


def seeds(row: Row, columns: Sequence[Column]) -> str:
    """Return how many seeds a row's cells are of: "3", or "2–3" if the columns differ."""
    counts = {len(row.columns[column.label].by_seed) for column in columns} - {0}
    return "–".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""


def _column(column: Column, records: Sequence[Record]) -> Scores:
    by_seed: dict[int, float] = {}
    items: dict[int, int] = {}
    marks: set[str] = set()
    failed: dict[int, str] = {}
    undefined = 0
    for record in records:
        if record.status != "finished":
            failed[record.seed] = record.status
            continue
        if column.curve is not None:
            points = [value for _, value in record.curves.get(column.curve, []) if value is not None]
            by_seed |= {record.seed: points[-1]} if points else {}
            continue
        measurement = find(column, record)
        if measurement is None:
            continue
        value = measurement.metrics[_metric(column, record)]
        if value is None:
            undefined += 1
            continue
        by_seed[record.seed] = value
        items[record.seed] = measurement.items
        marks |= {"c"} if measurement.at_chance else set()
        marks |= {"u"} if measurement.unreadable > UNREADABLE_SHARE * measurement.items else set()
        if record.name("task") in MNLI_STARTED and (record.identity.get("init_from") or "none") == "none":
            marks.add("m")
    return Scores(by_seed, items, "".join(sorted(marks)), failed, undefined)


def find(column: Column, record: Record) -> Measurement | None:
    """Return the measurement a column shows of a finished record, None if it was not taken.

    Scoring, checkpoint and subset are the headline's unless the column states them; the untrained base row has the one
    checkpoint "base", which is shown in every checkpoint's column.
    """
    headline = record.scores.headline
    assert headline is not None
    checkpoint = "base" if headline.checkpoint == "base" else column.checkpoint or headline.checkpoint
    wanted = {
        "subset": column.subset or headline.subset,
        "scoring": column.scoring or headline.scoring,
        "checkpoint": checkpoint,
    } | ({"split": column.split} if column.split else {})
    found = [
        m
        for m in record.scores.measurements
        if all(getattr(m, key) == value for key, value in wanted.items()) and _metric(column, record) in m.metrics
    ]
    # A checkpoint may be scored on validation too; a table shows the test's number unless the column names the split.
    found = [m for m in found if m.split == "test"] or found
    if len(found) > 1:
        splits = ", ".join(sorted({m.split for m in found}))
        raise AmbiguousColumnError(
            f"column {column.label!r}: {len(found)} measurements of record {record.run_id} match {wanted} "
            f"(splits: {splits}); state split, scoring or checkpoint in the column"
        )
    return found[0] if found else None


def _metric(column: Column, record: Record) -> str:
    assert record.scores.headline is not None
    return column.metric or record.scores.headline.metric


def _average(columns: Sequence[Scores]) -> Scores:
    failed = {seed: status for scores in columns for seed, status in scores.failed.items()}
    undefined = sum(scores.undefined for scores in columns)
    marks = "m" if any("m" in scores.marks for scores in columns) else ""
    return Scores(stats.average_per_seed([scores.by_seed for scores in columns]), {}, marks, failed, undefined)


def _difference(scores: Scores, reference: Scores | None, scale: float) -> stats.Difference | None:
    """Compare on the same seeds, and on them only where both were scored on the same number of items."""
    if reference is None:
        return None
    ours = {s: v * scale for s, v in scores.by_seed.items() if scores.items.get(s) == reference.items.get(s)}
    return stats.paired_difference(ours, {seed: value * scale for seed, value in reference.by_seed.items()})


def _why_empty(scores: Scores) -> str:
    if scores.undefined:
        return "undefined"
    statuses = Counter(scores.failed.values())
    return ", ".join(status if n == 1 else f"{status} (×{n})" for status, n in statuses.items())
