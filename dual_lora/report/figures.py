"""The points of each figure, from tables and their records: what the page and the SVG files both draw.

A table whose blocks sweep a setting (`table.figure`) has one of that setting. Each block with an endpoint has three:
differences from the reference, curves, and score against what the method costs. Blocks whose records hold diagnostics
(`diagnostics=on`) have one of what happened inside the update.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from dual_lora.records.schema import Cost
from dual_lora.report import inside, labels, selection
from dual_lora.report.definition import Experiment
from dual_lora.report.layout import BlockView, Line, TableView

Kind = Literal["rates", "differences", "curves", "cost", "inside", "speed"]
KINDS: Mapping[Kind, str] = {
    "rates": "settings that were swept",
    "differences": "differences from the reference",
    "curves": "training and validation",
    "cost": "score against parameters and cost",
    "inside": "inside the update",
    "speed": "time of a layer",  # of a benchmark, not of records
}
_T = TypeVar("_T")
POINTS = 60  # of a curve that a figure shows; the record holds all
_COSTS: Mapping[str, Callable[[Cost], float | int | None]] = {
    "trained parameters, without a head": lambda cost: cost.trainable_parameters_without_head,
    "peak memory, GiB": lambda cost: cost.peak_gib,
}
UPDATE = "size of the update / weight"
STEP = "change by one step / weight"
DESCENT = "share of a step that lowers the loss"
# Measure of the diagnostics -> what its axis says. By step: the share of all entries, or of the whole weight.
_BY_STEP = {
    "zero_share": "zeros in ReLU(BA)",
    "flipped_share": "signs flipped by one step",
    "magnitude_step": STEP,
    "flip_step": STEP,
    "magnitude_descent": DESCENT,
    "flip_descent": DESCENT,
    "update_ratio": UPDATE,
}
_PARTS = {"magnitude": ", by magnitudes", "flip": ", by flips"}  # of one step, in one panel
_BY_LAYER = {
    "stable_rank": "stable rank of the update",
    "numerical_rank": "numerical rank / largest possible",
    "cosine": "cosine with full fine-tuning",
}


@dataclass(frozen=True)
class Point:
    """One point with its range. chosen: the best of its line; end: the smallest or largest x that the line has."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    chosen: bool = False
    end: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes. lines: method in words -> its points by x."""

    x: str
    y: str
    lines: Mapping[str, tuple[Point, ...]]
    log_x: bool = False
    log_y: bool = False
    better: Literal["higher", "lower"] | None = None
    margin: float | None = None
    decimals: int = 1


@dataclass(frozen=True)
class Figure:
    """A figure; without panels where no record gives a point, and then with the commands that would."""

    name: str
    table: str
    kind: Kind
    title: str
    panels: tuple[Panel, ...]
    commands: tuple[str, ...] = ()


def figures(view: TableView, experiments: Mapping[str, Experiment]) -> list[Figure]:
    """Return a table's figures, those that cannot be drawn yet too."""
    found = list(_swept(view, experiments))
    seen: set[frozenset[str]] = set()
    for block in view.blocks:
        experiment = experiments[block.experiment]
        runs = frozenset(record.run_id for line in block.lines for record in line.records)
        made = {
            kind: panels
            for kind, panels in _of_block(block, experiment).items()
            if kind == "differences" or not (runs and runs in seen)  # the same runs, in another block's columns
        }
        seen |= {runs} if made else set()
        title = f"{view.title}: {block.heading.partition(' [')[0]}"
        todo = selection.to_do(experiment, experiment.runs())
        for kind, panels in made.items():
            kept = tuple(panel for panel in panels if panel.lines)
            found.append(Figure(f"{experiment.name}_{kind}", view.name, kind, title, kept, () if kept else tuple(todo)))
    return found


def method_of(experiment: Experiment, line: Line, *, along: str | None = None) -> str:
    """Return what a row is called: its method, and in words what else its sweep varies but the setting along x."""
    name = line.choices["method"]
    told = line.records[0].identity["method"].get("label") if line.records else None
    label = str(experiment.block.labels.get(name) or told or line.method.partition(" (")[0])
    label = f"{line.model}, {label}" if len(experiment.sweep["model"]) > 1 else label
    varied = labels.varied(experiment, line.choices)
    names = experiment.block.labels
    words = [names.get(value, f"{labels.of_setting(key)} {value}") for key, value in varied.items() if key != along]
    return f"{label} ({', '.join(words)})" if words else label


def _swept(view: TableView, experiments: Mapping[str, Experiment]) -> Iterator[Figure]:
    """Yield a figure for each setting that blocks of the table plot, a panel a column, all methods in one."""
    by_setting: dict[str, list[BlockView]] = {}
    for block in view.blocks:
        asked = experiments[block.experiment].block.figure
        if asked is not None:
            by_setting.setdefault(asked.x, []).append(block)
    for setting, blocks in by_setting.items():
        first = experiments[blocks[0].experiment]
        asked = first.block.figure
        assert asked is not None
        panels = []
        for column in sorted(first.block.columns, key=lambda column: column.label != asked.column):
            name = column.label
            lines: dict[str, list[Point]] = defaultdict(list)
            for block in (block for block in blocks if name in block.columns):
                for line in (line for line in block.lines if line.source is None):
                    cell = line.cells[block.columns.index(name)]
                    if cell.value is not None:
                        spread = cell.sd or 0.0
                        point = Point(float(line.choices[setting]), cell.value, n=cell.n)
                        ranged = replace(point, low=point.y - spread, high=point.y + spread) if spread else point
                        lines[method_of(experiments[block.experiment], line, along=setting)].append(ranged)
            chooses = setting == selection.RATE and not column.average
            marked = {method: _marked(points, column.better if chooses else None) for method, points in lines.items()}
            panels.append(
                Panel(
                    labels.of_setting(setting),
                    name,
                    marked,
                    asked.log_x,
                    better=column.better,
                    decimals=column.decimals,
                )
            )
        todo = [c for b in blocks for c in selection.to_do(experiments[b.experiment], experiments[b.experiment].runs())]
        kept = tuple(panel for panel in panels if panel.lines)
        yield Figure(first.name, view.name, "rates", view.title, kept, () if kept else tuple(todo))


def _marked(points: Iterable[Point], better: str | None) -> tuple[Point, ...]:
    """Return the points by x, the ends and the best one marked; of equal ones the first, as `run.py tune` does."""
    ordered = sorted(points, key=lambda point: point.x)
    sign = 1 if better == "lower" else -1
    best = min(ordered, key=lambda point: sign * point.y) if better and len(ordered) > 1 else None
    return tuple(replace(point, chosen=point is best, end=point in (ordered[0], ordered[-1])) for point in ordered)


def _of_block(block: BlockView, experiment: Experiment) -> dict[Kind, list[Panel]]:
    found: dict[Kind, list[Panel]] = {}
    named = experiment.block.endpoint
    if named is not None and named.column in block.columns:
        found |= {
            "differences": list(_differences(block, experiment)),
            "curves": list(_curves(block, experiment)),
            "cost": list(_cost(block, experiment)),
        }
    watched = [line for line in block.lines if any(inside.report(record) for record in line.records)]
    if watched or experiment.sweep.get("diagnostics", ("off",))[0].lower() in ("on", "true"):  # YAML's on is true
        found["inside"] = list(_inside(watched, experiment))
    return found


def _differences(block: BlockView, experiment: Experiment) -> Iterator[Panel]:
    """Yield a panel a column: each method minus the reference with its interval, along x. The endpoint is first."""
    named = experiment.block.endpoint
    assert named is not None
    for label in sorted(block.columns, key=lambda label: label != named.column):
        column = experiment.block.column(label)
        lines: dict[str, tuple[Point, ...]] = {}
        for line in block.lines:
            difference = line.cells[block.columns.index(label)].difference
            if difference is not None:
                low, high = difference.interval() or (None, None)
                lines[method_of(experiment, line)] = (Point(difference.mean, -len(lines), low, high, difference.n),)
        margin = named.margin if label == named.column else None
        yield Panel(f"{label} minus {block.reference}", "", lines, better=column.better, margin=margin)


def _curves(block: BlockView, experiment: Experiment) -> Iterator[Panel]:
    """Yield validation loss of each task, and of one alone training loss: the mean over seeds, and their range."""
    asked = ("validation_loss",) if len(experiment.tasks) > 1 else ("validation_loss", "train_loss")
    for task, curve in itertools.product(experiment.tasks, asked):
        lines = {}
        for line in block.lines:
            held = [r.curves[curve] for r in line.records if r.name("task") == task and r.curves.get(curve)]
            if held:
                lines[method_of(experiment, line)] = tuple(_over_seeds(held))
        about = f", {task.rpartition('/')[2]}" if len(experiment.tasks) > 1 else ""
        yield Panel("step", f"{labels.of_setting(curve).replace('train ', 'training ')}{about}", lines, better="lower")


def thinned(points: Sequence[_T], most: int = POINTS) -> list[_T]:
    """Return at most `most` points of a curve, evenly spaced, first and last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _over_seeds(curves: Sequence[Sequence[Sequence[float | None]]]) -> list[Point]:
    by_step: dict[float, list[float]] = defaultdict(list)
    for step, value in (point for curve in curves for point in curve):
        if step is not None and value is not None:
            by_step[step].append(value)
    # Steps that few seeds have would make the mean jump.
    shared = [(step, values) for step, values in sorted(by_step.items()) if 2 * len(values) > len(curves)]
    return [_ranged(step, values) for step, values in thinned(shared)]


def _ranged(x: float, values: Sequence[float]) -> Point:
    return Point(x, math.fsum(values) / len(values), min(values), max(values), len(values))


def _cost(block: BlockView, experiment: Experiment) -> Iterator[Panel]:
    """Yield the endpoint's column against parameters and memory; a method of several sizes is one line."""
    named = experiment.block.endpoint
    assert named is not None
    column = experiment.block.column(named.column)
    for heading, take in _COSTS.items():
        lines: dict[str, list[Point]] = defaultdict(list)
        for line in (line for line in block.lines if line.source is None):
            cell = line.cells[block.columns.index(column.label)]
            costs = [cost for record in line.records if not record.untrained and (cost := take(record.cost))]
            if cell.value is not None and costs:
                spread = cell.sd or 0.0
                lines[method_of(experiment, line).partition(" (")[0]].append(
                    Point(math.fsum(costs) / len(costs), cell.value, cell.value - spread, cell.value + spread, cell.n)
                )
        ordered = {method: tuple(sorted(points, key=lambda point: point.x)) for method, points in lines.items()}
        xs = [point.x for points in ordered.values() for point in points]
        wide = bool(xs) and max(xs) > 20 * min(xs)
        yield Panel(heading, column.label, ordered, wide, better=column.better, decimals=column.decimals)


def _inside(lines: Sequence[Line], experiment: Experiment) -> Iterator[Panel]:
    """Yield what diagnostics measured: by step over all layers, at the end by layer; means and ranges over runs."""
    reports = {
        method_of(experiment, line): [report for record in line.records if (report := inside.report(record))]
        for line in lines
    }
    for heading in dict.fromkeys(_BY_STEP.values()):
        found = {
            method + _PARTS.get(measure.partition("_")[0], ""): tuple(
                _over_seeds([curve for report in held if (curve := inside.by_step(report, measure))])
            )
            for measure in (name for name, its in _BY_STEP.items() if its == heading)
            for method, held in reports.items()
        }
        logarithmic = heading in (_BY_STEP["flipped_share"], STEP)
        if logarithmic:  # the first step of a warm-up moves nothing
            found = {method: tuple(point for point in points if point.y > 0) for method, points in found.items()}
        yield Panel("step", heading, {m: p for m, p in found.items() if p}, log_y=logarithmic)
    for measure, heading in _BY_LAYER.items():
        by_layer: dict[str, tuple[Point, ...]] = {}
        for method, held in reports.items():
            for prefix, words in (("", ""), ("untrained_", ", untrained")):
                points = [inside.by_layer(report, prefix + measure) for report in held]
                if any(points):
                    by_layer[method + words] = tuple(_over_seeds([curve for curve in points if curve]))
        yield Panel("adapted layer, from the first on", heading, by_layer)
