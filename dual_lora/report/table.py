"""From an experiment's blocks, records and published numbers to a table that any format can write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from dual_lora.records.schema import Record
from dual_lora.report import measured, published, selection
from dual_lora.report.definition import Column, Experiment, PublishedRows
from dual_lora.report.layout import BlockView, Cell, Line, Samples, TableView
from dual_lora.report.measured import Row
from dual_lora.report.published import Published

_FIXED = ("model", "task", "method", "protocol", "profile", "seed", "data.source", "data.dir")
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
    sources: list[str] = field(default_factory=list)

    def build(self, name: str, blocks: Sequence[Experiment], records: Sequence[Record]) -> TableView:
        """Return a table. Raises `MixedBlockError`, `AmbiguousColumnError`, `PublishedError`."""
        usable = [record for record in records if not selection.is_local_play(record)]
        views = [view for experiment in blocks for view in self._block(experiment, usable)]
        named = next((b for b in blocks if b.name == name), blocks[0])
        return TableView(name, named.block.title or name, named.block.about.strip(), tuple(views), tuple(self.sources))

    def _block(self, experiment: Experiment, records: Sequence[Record]) -> list[BlockView]:
        """Return a block's grids, one per panel; notes and commands are below the last."""
        chosen = selection.select(experiment, records)
        rows = [measured.measure(experiment, chosen, choices) for choices in experiment.rows()]
        missing = selection.missing(experiment, chosen)
        every = len(experiment.runs())
        printed = self._printed(experiment)
        used: set[Published] = set()
        views = [
            BlockView(
                heading=": ".join(part for part in (experiment.block.block, panel) if part),
                columns=tuple(column.label for column in columns),
                cost_columns=tuple(_COST_HEADINGS[name] for name in experiment.block.cost),
                lines=tuple(self._lines(experiment, columns, rows, printed, used)),
                legend=_legend(experiment),
                runs_done=every - len(missing),
                runs_all=every,
            )
            for panel, columns in experiment.panels().items()
        ]
        below = replace(
            views[-1],
            notes=tuple(self._notes(experiment, rows, used)),
            samples=tuple(self._samples(experiment, rows)) if experiment.block.samples else (),
            commands=tuple(selection.commands(experiment, missing)),
        )
        return [*views[:-1], below]

    def _lines(
        self,
        experiment: Experiment,
        columns: Sequence[Column],
        rows: Sequence[Row],
        printed: Sequence[tuple[PublishedRows, list[Published]]],
        used: set[Published],
    ) -> list[Line]:
        lines: list[Line] = []
        for model in experiment.block.published_other_models:
            lines += self._published_lines(experiment, columns, printed, model, None, used)
        for model in experiment.sweep["model"]:
            theirs = experiment.block.published_models.get(model)
            if theirs is not None:
                lines += self._published_lines(experiment, columns, printed, theirs, None, used)
            for row in (row for row in rows if row.choices["model"] == model):
                if theirs is not None:
                    method = row.choices["method"]
                    lines += self._published_lines(experiment, columns, printed, theirs, method, used)
                lines.append(self._line(experiment, columns, row, _reference(experiment, rows, row)))
        return lines

    def _line(self, experiment: Experiment, columns: Sequence[Column], row: Row, reference: Row | None) -> Line:
        block = experiment.block
        cells = [
            measured.cell(
                column,
                row.columns[column.label],
                reference.columns[column.label] if reference else None,
                median=block.median,
            )
            for column in columns
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
            cost=tuple(measured.cost(name, records) for name in block.cost),
        )

    def _label(self, experiment: Experiment, part: str, row: Row) -> str:
        """Return the table's own name for a model or method, else the record's, else the one in configs/."""
        name = row.choices[part]
        label = experiment.block.labels.get(name)
        if label is None and row.records:
            label = row.records[0].identity[part].get("label")
        if label is None:
            path = self.configs / part / f"{name}.yaml"
            label = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("label") if path.exists() else None
        varied = [f"{k}={v}" for k, v in row.choices.items() if k not in _FIXED and len(experiment.sweep[k]) > 1]
        return f"{label or name} ({', '.join(varied)})" if part == "method" and varied else str(label or name)

    def _printed(self, experiment: Experiment) -> list[tuple[PublishedRows, list[Published]]]:
        return [
            (
                rows,
                [
                    row
                    for row in published.read(self.published_folder, rows.file)
                    if row.table == rows.table and (rows.source is None or rows.source in row.source)
                ],
            )
            for rows in experiment.block.published
        ]

    def _published_lines(
        self,
        experiment: Experiment,
        columns: Sequence[Column],
        printed: Sequence[tuple[PublishedRows, list[Published]]],
        model: str,
        method: str | None,
        used: set[Published],
    ) -> list[Line]:
        """Return the printed rows of a model that belong to one of our methods, or (None) to none of them."""
        lines = []
        for rows, values in printed:
            ours = {
                theirs for name, list_ in rows.methods.items() for theirs in list_ if name in experiment.sweep["method"]
            }
            wanted = set(rows.methods.get(method, ())) if method is not None else None
            groups: dict[tuple[str, str, str], list[Published]] = {}
            for value in values:
                fits = value.method in wanted if wanted is not None else value.method not in ours
                if value.model == model and fits and (rows.only is None or value.method in {*rows.only, *ours}):
                    groups.setdefault((value.method, value.trainable, value.source), []).append(value)
            for group in groups.values():
                if any(_prints(column, value) for column in columns for value in group):
                    lines.append(self._published_line(experiment, columns, group, used))
        return lines

    def _published_line(
        self, experiment: Experiment, columns: Sequence[Column], group: Sequence[Published], used: set[Published]
    ) -> Line:
        cells = []
        for column in columns:
            match = next((value for value in group if _prints(column, value)), None)
            if match is not None:
                used.add(match)
            cells.append(Cell(match.value, match.sd, 0, column.decimals) if match else Cell())
        first = group[0]
        return Line(
            model=first.model,
            method=first.method,
            cells=tuple(cells),
            source=self._source(first.source),
            marks="s" if first.second_hand else "",
            cost=tuple(first.trainable if name == "trainable_parameters" else "" for name in experiment.block.cost),
        )

    def _source(self, text: str) -> int:
        if text not in self.sources:
            self.sources.append(text)
        return self.sources.index(text) + 1

    def _samples(self, experiment: Experiment, rows: Sequence[Row]) -> list[Samples]:
        """Gather replies by input, over the rows."""
        found: dict[str, Samples] = {}
        for row in rows:
            first = min((r for r in row.records if r.scores.samples), key=lambda record: record.seed, default=None)
            for sample in first.scores.samples if first else ():
                before = found.get(sample.input, Samples(sample.input, sample.reference, ()))
                reply = (self._label(experiment, "method", row), sample.reply)
                found[sample.input] = replace(before, replies=(*before.replies, reply))
        return list(found.values())

    def _notes(self, experiment: Experiment, rows: Sequence[Row], used: set[Published]) -> list[str]:
        notes: list[str] = []
        chosen_here: dict[str, list[str]] = {}  # settings -> the rows they belong to
        for row in rows:
            name = f"{self._label(experiment, 'model', row)}, {self._label(experiment, 'method', row)}"
            guessed = sorted({setting for r in row.records if not r.untrained for setting in r.guessed})
            if guessed:
                chosen_here.setdefault(", ".join(guessed), []).append(name)
            notes += [
                f"{name}: {record.name('task')}, seed {record.seed}: {record.status} ({record.message})"
                for record in row.records
                if record.status != "finished"
            ]
            notes += [f"{name}: not shown: {'; '.join(row.not_shown)}"] if row.not_shown else []
        notes += [f"{'; '.join(names)}: without a public source: {text}" for text, names in chosen_here.items()]
        records = [record for row in rows for record in row.records]
        notes += [f"{record.name('task')}: {note}" for record in records for note in record.scores.notes]
        devices = sorted({str(r.execution["device"]) for r in records if r.execution.get("device")})
        if devices:
            most = max(record.parallel for record in records)
            several = f"; up to {most} runs at the same time, so compare seconds with care" if most > 1 else ""
            notes.append(f"cost measured on: {', '.join(devices)}{several}")
        for file in experiment.block.published_notes:
            for value in published.read(self.published_folder, file):
                about = any(value.task in column.published for column in experiment.block.columns)
                if about and value not in used:
                    hand = " (second-hand)" if value.second_hand else ""
                    number = (
                        f"{value.value:+g} points"
                        if value.metric == "delta_points"
                        else f"{value.value:g} {value.metric}"
                    )
                    text = f"{value.model}, {value.method}: {number} on {value.task}"
                    notes.append(f"published{hand}: {text} [{self._source(value.source)}]")
        return list(dict.fromkeys(notes))


def _prints(column: Column, value: Published) -> bool:
    return value.task in column.published and column.published_metric in (None, value.metric)


def _reference(experiment: Experiment, rows: Sequence[Row], row: Row) -> Row | None:
    """Return the row of the reference method that shares everything else with this one."""
    method = experiment.block.reference
    if method is None or row.choices["method"] == method:
        return None
    # Methods have learning rates of their own, so a reference is looked for in the same model only.
    same: Mapping[str, str] = {**row.choices, "method": method}
    return next((other for other in rows if other.choices == same), None)


def _legend(experiment: Experiment) -> str:
    center = "median" if experiment.block.median else "mean"
    text = f"Here: {center} ± sample standard deviation over n seeds"
    if experiment.block.reference is not None:
        text += (
            f"; bold: better than method={experiment.block.reference}: the 95 % interval of the paired difference on "
            "the same seeds excludes zero (three seeds or more)"
        )
    sweep = experiment.sweep
    return f"{text}. Protocol {sweep['protocol'][0]}, profile {sweep['profile'][0]}."
