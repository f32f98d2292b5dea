"""From an experiment's blocks, records and published numbers to a table that any format can write."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dual_lora.records.schema import Record
from dual_lora.report import endpoint, labels, measured, neighbours, notes, published, selection, stats, trend
from dual_lora.report.definition import Column, Experiment
from dual_lora.report.gpu_hours import GpuHours
from dual_lora.report.layout import BlockView, Cell, Comparison, Line, Samples, TableView, Waiting
from dual_lora.report.measured import MeasuredBlock, Row
from dual_lora.report.published import Published

_COST_HEADINGS = {
    "train_seconds": "train s",
    "eval_seconds": "eval s",
    "tokens_per_second": "tokens/s",
    "peak_memory": "peak GiB",
    "trainable_parameters": "trainable",
}


@dataclass
class Builder:
    """Builds one table; numbers its sources in the order of their appearance."""

    published_folder: Path
    configs: Path
    alone: frozenset[str] | None = None  # ids of runs that had their card to themselves; None: found from the records
    hours: GpuHours = GpuHours()
    archived: frozenset[str] | None = None  # ids of runs whose replies are kept; None: not asked
    sources: list[str] = field(default_factory=list)
    _comparisons: dict[endpoint.Key, Comparison] = field(default_factory=dict, init=False)
    _asked: dict[str, Experiment] = field(default_factory=dict, init=False)  # before their grids are extended
    _alone: frozenset[str] = field(default=frozenset(), init=False)
    _usable: list[Record] = field(default_factory=list, init=False)

    def build(self, name: str, blocks: Sequence[Experiment], records: Sequence[Record]) -> TableView:
        """Return a table. Raises `MixedBlockError`, `AmbiguousColumnError`, `PublishedError`."""
        self._usable = [record for record in records if not selection.is_local_play(record)]
        names = frozenset[tuple[str, ...]]().union(*(experiment.names for experiment in blocks))
        usable = [record for record in self._usable if record.names in names]  # few of all records
        self._alone = neighbours.alone(records) if self.alone is None else self.alone
        blocks = [selection.with_winner(experiment, usable) for experiment in blocks]
        found = [measured.block(experiment, usable) for experiment in blocks]
        self._asked = {experiment.name: experiment for experiment in blocks}
        self._comparisons = endpoint.compare(found)
        views = [view for block in found for view in self._block(block)]
        named = next((b for b in blocks if b.name == name), blocks[0])
        return TableView(name, named.block.title or name, named.block.about.strip(), tuple(views), tuple(self.sources))

    def _block(self, block: MeasuredBlock) -> list[BlockView]:
        """Return a block's grids, one per panel; findings, notes and commands are below the last."""
        experiment = block.experiment
        missing = selection.missing(self._asked[experiment.name], block.records)
        every = len(self._asked[experiment.name].runs())
        printed = _Printed(self.published_folder, experiment, self._source)
        records = [record for row in block.rows for record in row.records]
        made_by = notes.provenance(records)
        views = [
            BlockView(
                experiment=experiment.name,
                heading=": ".join(part for part in (experiment.block.block, panel) if part) + made_by,
                columns=tuple(column.label for column in columns),
                cost_columns=tuple(_COST_HEADINGS[name] for name in experiment.block.cost),
                lines=tuple(self._lines(block, columns, printed)),
                legend=_legend(experiment),
                reference=self._reference_label(block),
                runs_done=every - len(missing),
                runs_all=every,
                gpu_minutes=neighbours.gpu_minutes(records),
            )
            for panel, columns in experiment.panels().items()
        ]
        todo = self.hours.of_commands(experiment, missing, self._usable)
        shown = (self.published_folder, printed.used)
        doubts = [] if self.archived is None else notes.not_kept(records, self.archived)
        below = replace(
            views[-1],
            findings=(*self._findings(block), *trend.sentences(block, self._label, self._comparisons)),
            changes=tuple(trend.changes(block, self._label)),
            makes_smaller=experiment.block.trend.revises
            if experiment.block.trend and trend.is_smaller(block)
            else None,
            notes=(*notes.notes(block, self._label, self._source, self._alone, shown), *doubts),
            samples=tuple(self._samples(block)) if experiment.block.samples else (),
            commands=tuple(selection.to_do(experiment, missing)),
            waiting=todo,
            takes=self.hours.sentence(todo, experiment.sweep["model"]),
        )
        return [*views[:-1], below]

    def _reference_label(self, block: MeasuredBlock) -> str | None:
        method = block.experiment.block.reference
        row = next((row for row in block.rows if row.choices["method"] == method), None)
        return labels.plain(self.configs, block.experiment, "method", row) if row else None

    def _findings(self, block: MeasuredBlock) -> list[str]:
        """Say what the endpoint says of each method, then which stated differences are in the intervals."""
        experiment = block.experiment
        several = len(experiment.sweep["model"]) > 1
        found, claims = [], []
        for row in block.rows:
            comparison = self._comparisons.get(endpoint.key(experiment, row))
            reference = block.reference(row)
            if comparison is not None and reference is not None:
                ours = self._label(experiment, "method", row)
                name = f"{self._label(experiment, 'model', row)}, {ours}" if several else ours
                theirs = self._label(experiment, "method", reference)
                found.append(endpoint.sentence(comparison, experiment, name, theirs))
                for value in published.differences(self.published_folder, experiment.block.published_notes):
                    if value.method == f"{ours} minus {theirs}":
                        claims += endpoint.stated(comparison, experiment, value, name)
        return [*found, *claims]

    def _lines(self, block: MeasuredBlock, columns: Sequence[Column], printed: _Printed) -> list[Line]:
        stated = block.experiment.block
        lines: list[Line] = []
        for model in stated.published_other_models:
            lines += printed.lines(columns, model)
        for model in block.experiment.sweep["model"]:
            theirs = stated.published_models.get(model)
            lines += printed.lines(columns, theirs) if theirs is not None else []
            for row in (row for row in block.rows if row.choices["model"] == model):
                lines += printed.lines(columns, theirs, row.choices["method"]) if theirs is not None else []
                lines.append(self._line(block, columns, row))
        return lines

    def _line(self, block: MeasuredBlock, columns: Sequence[Column], row: Row) -> Line:
        experiment = block.experiment
        reference = block.reference(row)
        cells = [
            measured.cell(
                column,
                row.columns[column.label],
                reference.columns[column.label] if reference else None,
                median=experiment.block.median,
            )
            for column in columns
        ]
        comparison = self._comparisons.get(endpoint.key(experiment, row))
        if comparison is not None and experiment.block.endpoint is not None:
            decides = experiment.block.endpoint.column
            cells = [
                replace(cell, comparison=comparison, bold=comparison.verdict == "better")
                if column.label == decides
                else cell
                for column, cell in zip(columns, cells, strict=True)
            ]
        cells = [
            cell if cell.value is not None else replace(cell, waiting=self._waiting(experiment, row, column.label))
            for column, cell in zip(columns, cells, strict=True)
        ]
        tasks = {column.task or experiment.tasks[0] for column in columns if not column.average}
        records = [record for record in row.records if record.name("task") in tasks]
        trained = [record for record in records if not record.untrained]
        doubts = {
            "g": any(record.guessed for record in trained),
            "d": any(record.name("recipe").startswith("default/") for record in trained),
            "t": any(record.origin.get("dirty") for record in records),
        }
        return Line(
            model=self._label(experiment, "model", row),
            method=self._label(experiment, "method", row),
            cells=tuple(cells),
            marks="".join(mark for mark, holds in doubts.items() if holds),
            n=measured.seeds(row, columns),
            trials="–".join(dict.fromkeys(str(count) for count in sorted({record.trials for record in trained}))),
            cost=tuple(measured.cost(name, records, self._alone) for name in experiment.block.cost),
            choices=row.choices,
            records=tuple(records),
        )

    def _waiting(self, experiment: Experiment, row: Row, label: str) -> Waiting:
        """Return what fills an empty cell: the seeds of its tasks that are not finished."""
        done = {(r.name("task"), r.seed) for r in row.records if r.status == "finished"}
        asked = [(task, seed) for task in experiment.tasks_of(label) for seed in experiment.seeds]
        runs = [{**row.choices, "task": task, "seed": str(seed)} for task, seed in asked if (task, seed) not in done]
        return self.hours.of(experiment, runs)

    def _label(self, experiment: Experiment, part: str, row: Row) -> str:
        return labels.of_row(self.configs, experiment, part, row)

    def _source(self, text: str) -> int:
        if text not in self.sources:
            self.sources.append(text)
        return self.sources.index(text) + 1

    def _samples(self, block: MeasuredBlock) -> list[Samples]:
        """Gather replies by input, over the rows."""
        found: dict[str, Samples] = {}
        for row in block.rows:
            first = min((r for r in row.records if r.scores.samples), key=lambda record: record.seed, default=None)
            for sample in first.scores.samples if first else ():
                before = found.get(sample.input, Samples(sample.input, sample.reference, ()))
                reply = (self._label(block.experiment, "method", row), sample.reply)
                found[sample.input] = replace(before, replies=(*before.replies, reply))
        return list(found.values())


class _Printed:
    """The rows of results/published that a block shows with ours; `used`: their numbers that have been shown."""

    def __init__(self, folder: Path, experiment: Experiment, source: Callable[[str], int]) -> None:
        self._experiment, self._source = experiment, source
        self.used: set[Published] = set()
        self._rows = [
            (rows, [row for row in published.read(folder, rows.file) if row.table == rows.table])
            for rows in experiment.block.published
        ]

    def lines(self, columns: Sequence[Column], model: str, method: str | None = None) -> list[Line]:
        """Return the printed rows of a model that belong to one of our methods, or (None) to none of them."""
        lines = []
        for rows, values in self._rows:
            of_ours = (names for name, names in rows.methods.items() if name in self._experiment.sweep["method"])
            ours = set(itertools.chain.from_iterable(of_ours))
            wanted = set(rows.methods.get(method, ())) if method is not None else None
            groups: dict[tuple[str, str, str], list[Published]] = {}
            for value in values:
                fits = value.method in wanted if wanted is not None else value.method not in ours
                fits = fits and (rows.source is None or rows.source in value.source)
                if value.model == model and fits and (rows.only is None or value.method in {*rows.only, *ours}):
                    groups.setdefault((value.method, value.trainable, value.source), []).append(value)
            for group in groups.values():
                if any(_prints(column, value) for column in columns for value in group):
                    lines.append(self._line(columns, group))
        return lines

    def _line(self, columns: Sequence[Column], group: Sequence[Published]) -> Line:
        shown = [next((value for value in group if _prints(column, value)), None) for column in columns]
        self.used.update(value for value in shown if value is not None)
        first, costs = group[0], self._experiment.block.cost
        return Line(
            model=first.model,
            method=first.method,
            cells=tuple(
                Cell(value.value, value.sd, 0, column.decimals) if value else Cell()
                for column, value in zip(columns, shown, strict=True)
            ),
            source=self._source(first.source),
            marks="s" if first.second_hand else "",
            cost=tuple(first.trainable if name == "trainable_parameters" else "" for name in costs),
        )


def _prints(column: Column, value: Published) -> bool:
    return value.task in column.published and column.published_metric in (None, value.metric)


def _legend(experiment: Experiment) -> str:
    block = experiment.block
    center = "median" if block.median else "mean"
    text = f"Here: {center} ± sample standard deviation over n seeds"
    if block.endpoint is not None:
        text += (
            f"; endpoint: {block.endpoint.column}, named {block.endpoint.named:%Y-%m-%d}; bold: better in it than "
            f"method={block.reference} by a paired t test, p below {endpoint.LEVEL} after Holm over the endpoints of "
            f"this page, {stats.MIN_PAIRS} pairs or more, above chance, runs begun after that"
        )
    sweep = experiment.sweep
    return f"{text}. Protocol {sweep['protocol'][0]}, profile {sweep['profile'][0]}."
