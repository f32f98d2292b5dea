"""Tables as the page shows them: each row with its choices and runs, each cell with its seeds and its command."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dual_lora.page.values import number, plain, without_blanks
from dual_lora.records.schema import Record
from dual_lora.report import selection
from dual_lora.report.definition import Column, Experiment
from dual_lora.report.layout import BlockView, Cell, Comparison, Line, TableView, Waiting
from dual_lora.report.stats import Estimate


def table(view: TableView, experiments: Mapping[str, Experiment], alone: Container[str] = ()) -> dict[str, Any]:
    """Return a table's blocks, rows and cells. `alone`: ids of runs that had their card to themselves."""
    return {
        "name": view.name,
        "title": plain(view.title),
        "about": plain(view.about),
        "sources": plain(view.sources),
        "blocks": [_Block(block, experiments[block.experiment], alone).values() for block in view.blocks],
    }


@dataclass(frozen=True)
class _Block:
    view: BlockView
    experiment: Experiment
    alone: Container[str]

    def values(self) -> dict[str, Any]:
        view, experiment = self.view, self.experiment
        endpoint = experiment.block.endpoint
        return {
            "experiment": experiment.name,
            "heading": plain(view.heading),
            "protocol": experiment.sweep["protocol"][0],
            "profile": experiment.sweep["profile"][0],
            "columns": [self._column(label) for label in view.columns],
            "costs": list(view.cost_columns),
            "legend": plain(view.legend),
            "reference": plain(view.reference),
            "endpoint": None
            if endpoint is None
            else {"column": endpoint.column, "margin": endpoint.margin, "named": f"{endpoint.named:%Y-%m-%d %H:%M %Z}"},
            "findings": plain(view.findings),
            "notes": plain(view.notes),
            "samples": [
                {"input": plain(s.input), "reference": plain(s.reference), "replies": plain(s.replies)}
                for s in view.samples
            ],
            "commands": plain(view.commands),
            "takes": plain(view.takes),
            "waiting": waiting(view.waiting),
            "done": view.runs_done,
            "all": view.runs_all,
            "gpu_minutes": number(view.gpu_minutes, 3),
            "rows": [self._row(line) for line in view.lines],
        }

    def _column(self, label: str) -> dict[str, Any]:
        column = self.experiment.block.column(label)
        return {
            "label": plain(label),
            "task": ", ".join(self.experiment.tasks_of(label)),
            "better": column.better,
            "decimals": column.decimals,
            "unit": unit(column),
        }

    def _row(self, line: Line) -> dict[str, Any]:
        measured = line.source is None
        runs = self._runs(line) if measured else []
        todo = [run for run in runs if not any(selection.belongs(record, run) for record in line.records)]
        row: dict[str, Any] = {
            "model": plain(line.model),
            "method": plain(line.method),
            "marks": line.marks,
            "n": line.n,
            "trials": line.trials,
            "cost": plain(line.cost),
            "cells": [
                self._cell(cell, self._of_tasks(label, todo) or self._of_tasks(label, runs))
                for label, cell in zip(self.view.columns, line.cells, strict=True)
            ],
        }
        if not measured:
            return {**row, "source": line.source, "of": self._ours(line)}
        return {
            **row,
            "is": [line.choices["model"], line.choices["method"]],
            "runs": [record.run_id for record in line.records],
            "totals": _totals(line.records, self.alone),
            "todo": selection.to_do(self.experiment, todo),
            "again": selection.to_do(self.experiment, [run for run in runs if run not in todo]),
        }

    def _ours(self, line: Line) -> list[str | None]:
        """Return the model and method of ours that a published row is of, None where we have neither."""
        block = self.experiment.block
        models = {theirs: ours for ours, theirs in block.published_models.items()}
        methods = {theirs: ours for rows in block.published for ours, names in rows.methods.items() for theirs in names}
        return [models.get(line.model), methods.get(line.method)]

    def _of_tasks(self, label: str, runs: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        tasks = self.experiment.tasks_of(label)
        return [run for run in runs if run["task"] in tasks]

    def _cell(self, cell: Cell, runs: Sequence[dict[str, str]]) -> dict[str, Any]:
        """Return a cell; an empty one of ours with the command that does `runs`, which it waits for."""
        found: dict[str, Any] = {
            "v": number(cell.value),
            "sd": number(cell.sd),
            "n": cell.n,
            "low": number(cell.low),
            "high": number(cell.high),
            "bold": cell.bold,
            "marks": cell.marks,
            "word": plain(cell.word),
            "diff": estimate(cell.difference),
            "strata": [[[seed, number(value)] for seed, value in sorted(part.items())] for part in cell.strata],
            "tests": _tests(cell.comparison),
        }
        if cell.value is None:
            found["todo"] = selection.to_do(self.experiment, runs, retry=bool(cell.word))
            found["waiting"] = waiting(cell.waiting)
        return {"v": None, **without_blanks(found)}

    def _runs(self, line: Line) -> list[dict[str, str]]:
        return [
            run
            for run in self.experiment.runs()
            if all(run[setting] == value for setting, value in line.choices.items())
        ]


def unit(column: Column) -> str:
    """Return what a difference of scores is in: points of a hundred, or nothing where the metric has its own scale."""
    return "points" if column.scale == 100 else ""


def waiting(found: Waiting | None) -> list[Any] | None:
    """Return runs, GPU-hours, runs without an estimate, and why."""
    return None if found is None else [found.runs, number(found.hours, 3), found.without, plain(found.why)]


def estimate(found: Estimate | None) -> list[float | int | None] | None:
    """Return mean, lower and upper limit, number of pairs, degrees of freedom."""
    if found is None:
        return None
    low, high = found.interval() or (None, None)
    return [number(found.mean), number(low), number(high), found.n, number(found.df, 3)]


def _tests(tested: Comparison | None) -> dict[str, Any] | None:
    if tested is None:
        return None
    items = tested.items
    found: dict[str, Any] = {
        "verdict": tested.verdict,
        "p": number(tested.p, 4),
        "sign_flip": number(tested.sign_flip, 4),
        "p_equal": number(tested.p_equal, 4),
        "detectable": number(tested.detectable, 3),
        "blocked": estimate(tested.blocked),
        "items": items and {name: number(value, 4) for name, value in vars(items).items()},
    }
    return {key: value for key, value in found.items() if value is not None}


def _totals(records: Sequence[Record], alone: Container[str]) -> dict[str, float | int | None]:
    """Return what a row took, as numbers for the figures: means over its finished runs, the largest for memory.

    Times are of runs that had their card to themselves; without one there is none.
    """
    timed = [record.cost for record in records if record.status == "finished" and record.run_id in alone]
    finished = [record.cost for record in records if record.status == "finished"]
    peaks = [peak for cost in finished if (peak := cost.peak_gib) is not None]
    trained = [cost.trainable_parameters_without_head for cost in finished]
    flops = [cost.train_flops for cost in finished]
    found = {
        "trainable parameters": _mean(trained),
        "adapter MiB": _mean([cost.adapter_bytes and cost.adapter_bytes / 1024**2 for cost in finished]),
        "training FLOPs": _mean(flops),
        "peak GiB": max(peaks, default=None),
        "training seconds": _mean([cost.train_seconds for cost in timed]),
        "tokens a second": _mean([cost.tokens_per_second for cost in timed]),
    }
    return {name: number(value) for name, value in found.items() if value is not None}


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
