"""Our rows: the scores of a row's records by column and seed, and the cells made of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dual_lora.config import MNLI_STARTED
from dual_lora.records.schema import Measurement, Record
from dual_lora.report import inside, selection, stats
from dual_lora.report.definition import Column, Experiment
from dual_lora.report.layout import Cell

UNREADABLE_SHARE = 0.01  # above it a cell is marked


@dataclass(frozen=True)
class ColumnScores:
    """One column of one row: seed -> score (unscaled), and what else a cell says.

    strata: one, or for an average over tasks one per task, since runs of different tasks have no seed in common.
    """

    strata: tuple[stats.Stratum, ...] = ()
    items: tuple[Mapping[int, int], ...] = ()  # per stratum, seed -> test items; empty for a curve
    marks: str = ""
    failed: Mapping[int, str] = field(default_factory=dict)  # seed -> status
    undefined: int = 0
    runs: tuple[str, ...] = ()  # ids of the runs that the scores are of

    @property
    def measured(self) -> bool:
        return bool(self.strata) and all(self.strata)

    def scaled(self, scale: float) -> list[dict[int, float]]:
        """Return the strata as a table shows them."""
        return [{seed: value * scale for seed, value in stratum.items()} for stratum in self.strata]


@dataclass(frozen=True)
class Row:
    """One row of a sweep with everything its records hold."""

    choices: Mapping[str, str]
    records: tuple[Record, ...]
    columns: Mapping[str, ColumnScores]
    not_shown: tuple[str, ...]  # other variants, in words


@dataclass(frozen=True)
class MeasuredBlock:
    """One block's records, as chosen for it, and the rows made of them."""

    experiment: Experiment
    records: tuple[Record, ...]
    rows: tuple[Row, ...]

    def reference(self, row: Row) -> Row | None:
        """Return the row of the reference method that shares everything else with this one."""
        method = self.experiment.block.reference
        if method is None or row.choices["method"] == method:
            return None
        # Methods have learning rates of their own, so a reference is looked for in the same model only.
        same = {**row.choices, "method": method}
        return next((other for other in self.rows if other.choices == same), None)


class AmbiguousColumnError(ValueError):
    """A column that several measurements of a record match; the message names what tells them apart."""


def block(experiment: Experiment, records: Sequence[Record]) -> MeasuredBlock:
    """Return a block over the records that belong to it, of trials also those of rates by which a grid was extended.

    Raises `MixedBlockError`, `AmbiguousColumnError`.
    """
    asked = experiment.rows()
    experiment = selection.with_extension(experiment, records)
    chosen = selection.select(experiment, records)
    rows = [measure(experiment, chosen, choices) for choices in experiment.rows()]
    # A grid may have been extended for some of the methods only.
    return MeasuredBlock(experiment, tuple(chosen), tuple(row for row in rows if row.records or row.choices in asked))


def measure(experiment: Experiment, records: Sequence[Record], choices: Mapping[str, str]) -> Row:
    """Return a row's scores. Raises `AmbiguousColumnError`."""
    by_task: dict[str, list[Record]] = {}
    not_shown: list[str] = []
    for task in experiment.tasks:
        by_task[task], others = selection.of_row(records, choices, task)
        not_shown += [f"{task}, {other}" for other in others] if len(experiment.tasks) > 1 else others
    columns: dict[str, ColumnScores] = {}
    for column in experiment.block.columns:
        if column.average:
            before = [c for c in experiment.panels()[column.panel] if c.label in columns and not c.average]
            columns[column.label] = _average([(c.task or experiment.tasks[0], columns[c.label]) for c in before])
        else:
            columns[column.label] = _column(column, by_task[column.task or experiment.tasks[0]])
    unique = {record.run_id: record for task in by_task.values() for record in task}
    return Row(choices, tuple(unique.values()), columns, tuple(not_shown))


def cell(column: Column, scores: ColumnScores, reference: ColumnScores | None = None, *, median: bool = False) -> Cell:
    """Return what a column shows: centre and spread over seeds, and the difference from the reference method."""
    if not scores.measured:
        return Cell(word=_why_empty(scores), marks="")
    strata = scores.scaled(column.scale)
    found = stats.estimate(strata)
    low, high = found.interval() or (None, None)
    return Cell(
        value=stats.median(strata) if median else found.mean,
        sd=found.sd,
        n=found.n,
        decimals=column.decimals,
        marks=scores.marks + ("f" if scores.failed else "") + ("x" if scores.undefined else ""),
        low=low,
        high=high,
        difference=difference(column, scores, reference),
        strata=tuple(strata),
        runs=scores.runs,
    )


def difference(column: Column, scores: ColumnScores, reference: ColumnScores | None) -> stats.Estimate | None:
    """Return ours minus the reference's, pair by pair; None where there is no pair to compare."""
    pairs = pairs_of(column, scores, reference)
    return None if pairs is None else stats.estimate(pairs)


def pairs_of(column: Column, scores: ColumnScores, reference: ColumnScores | None) -> list[dict[int, float]] | None:
    """Return seed -> difference per stratum, of seeds that both methods have with the same number of test items."""
    if reference is None or not scores.measured or not reference.measured:
        return None
    ours = [
        {seed: value for seed, value in stratum.items() if mine.get(seed) == theirs.get(seed)}
        for stratum, mine, theirs in zip(scores.scaled(column.scale), scores.items, reference.items, strict=True)
    ]
    return stats.differences(ours, reference.scaled(column.scale))


def cost(name: str, records: Sequence[Record], alone: Container[str]) -> str:
    """Return a cost column of a row: means over its finished runs, the largest for memory.

    Times are of runs that had their card to themselves (`alone`: their ids); empty if there was none.
    """
    finished = [record for record in records if record.status == "finished"]
    if name == "peak_memory":
        peaks = [peak for record in finished if (peak := record.cost.peak_gib) is not None]
        return f"{max(peaks):.1f}" if peaks else ""
    if name == "trainable_parameters":
        return trainable(finished)
    timed = [record for record in finished if record.run_id in alone]
    values = [value for record in timed if (value := getattr(record.cost, name)) is not None]
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
    counts = {len(stratum) for column in columns for stratum in row.columns[column.label].strata} - {0}
    return "–".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""


def _column(column: Column, records: Sequence[Record]) -> ColumnScores:
    by_seed: dict[int, float] = {}
    items: dict[int, int] = {}
    marks: set[str] = set()
    failed: dict[int, str] = {}
    undefined = 0
    runs: dict[int, str] = {}
    for record in records:
        if record.status != "finished":
            failed[record.seed] = record.status
            continue
        if column.curve is not None:
            value = _of_curve(record, column.curve)
            by_seed |= {} if value is None else {record.seed: value}
            runs |= {} if value is None else {record.seed: record.run_id}
            continue
        parts = [find(of_subset(column, name), record) for name in column.subsets or (column.subset,)]
        found = [measurement for measurement in parts if measurement is not None]
        if len(found) < len(parts):
            continue
        values = [measurement.metrics[metric_of(column, record)] for measurement in found]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            undefined += 1
            continue
        by_seed[record.seed] = math.fsum(known) / len(known)
        runs[record.seed] = record.run_id
        items[record.seed] = sum(measurement.items for measurement in found)
        marks |= {"c"} if all(measurement.at_chance for measurement in found) else set()
        unreadable = sum(measurement.unreadable for measurement in found)
        marks |= {"u"} if unreadable > UNREADABLE_SHARE * items[record.seed] else set()
        if record.name("task") in MNLI_STARTED and (record.identity.get("init_from") or "none") == "none":
            marks.add("m")
    return ColumnScores((by_seed,), (items,), "".join(sorted(marks)), failed, undefined, tuple(runs.values()))


def _of_curve(record: Record, curve: str) -> float | None:
    if curve.startswith(inside.PREFIX):
        return inside.mean(record, curve.removeprefix(inside.PREFIX))
    points = [value for _, value in record.curves.get(curve, []) if value is not None]
    return points[-1] if points else None


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
        if all(getattr(m, key) == value for key, value in wanted.items()) and metric_of(column, record) in m.metrics
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


def of_subset(column: Column, subset: str | None) -> Column:
    """Return the column of one of a column's subsets."""
    return replace(column, subset=subset, subsets=()) if column.subsets else column


def metric_of(column: Column, record: Record) -> str:
    """Return the metric a column shows of a finished record: its own, or the headline's."""
    assert record.scores.headline is not None
    return column.metric or record.scores.headline.metric


def _average(columns: Sequence[tuple[str, ColumnScores]]) -> ColumnScores:
    """Return the mean over columns: within each seed over the columns of one task, then one stratum per task."""
    by_task: dict[str, list[ColumnScores]] = {}
    for task, scores in columns:
        by_task.setdefault(task, []).append(scores)
    strata = [stats.average_per_seed([s for scores in part for s in scores.strata]) for part in by_task.values()]
    items = [
        {seed: sum(own.get(seed, 0) for scores in part for own in scores.items) for seed in stratum}
        for part, stratum in zip(by_task.values(), strata, strict=True)
    ]
    failed = {seed: status for _, scores in columns for seed, status in scores.failed.items()}
    undefined = sum(scores.undefined for _, scores in columns)
    marks = "m" if any("m" in scores.marks for _, scores in columns) else ""
    runs = tuple(dict.fromkeys(run for _, scores in columns for run in scores.runs))
    return ColumnScores(tuple(strata), tuple(items), marks, failed, undefined, runs)


def _why_empty(scores: ColumnScores) -> str:
    if scores.undefined:
        return "undefined"
    statuses = Counter(scores.failed.values())
    return ", ".join(status if n == 1 else f"{status} (×{n})" for status, n in statuses.items())
