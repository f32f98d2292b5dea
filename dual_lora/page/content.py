"""All that the page shows, as plain values: overview, tables, figures, runs."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dual_lora import shipped
from dual_lora.page import grids, overview, plots
from dual_lora.page.values import Pool, number, plain, without_blanks
from dual_lora.records.schema import Cost, Measurement, Record
from dual_lora.report import figures, neighbours, provenance, selection
from dual_lora.report.definition import Experiment
from dual_lora.report.figures import thinned
from dual_lora.report.gpu_hours import GpuHours
from dual_lora.report.layout import MARKS, TableView
from dual_lora.report.workspace import Workspace

CURVE_DIGITS = 4
CURVE_POINTS = (60, 40, 30, 20, 10)  # at most, of a curve of a run: the first with which
ALL_POINTS = 60_000  # are enough for this curve of every run, so that the page stays small
COSTS = tuple(field.name for field in dataclasses.fields(Cost))


def gather(
    space: Workspace, views: Mapping[str, TableView], held: Sequence[Record], refused: Sequence[str]
) -> dict[str, Any]:
    """Return the page's values. The same records and files give the same values.

    Runs are by the first experiment that has them, each with a pool of its own: a new sweep changes nothing of another.
    """
    experiments = space.experiments()
    named = [text.replace(f"{space.root}/", "") for text in refused]  # no folder of this machine
    drawn = [figure for view in views.values() for figure in figures.figures(view, experiments)]
    alone, asked = neighbours.alone(held), selection.asked_by(experiments.values(), held)
    verdicts = [entry for view in views.values() for entry in overview.verdicts(view, experiments)]
    points = next((count for count in CURVE_POINTS if count * len(held) <= ALL_POINTS), CURVE_POINTS[-1])
    sweeps: dict[str, _Sweep] = defaultdict(_Sweep)
    for record in sorted(held, key=lambda record: record.run_id):
        first = next((one for one in asked[record.names] if selection.run_of(record, one) is not None), None)
        sweep = sweeps[first.name if first else ""]
        sweep.runs[record.run_id] = _run(record, sweep.pool, first, alone, points)
    return {
        "made": {"program": shipped.PROGRAM, "records": len(held), "refused": plain(named), "points": points},
        "question": overview.QUESTION,
        "rule": overview.RULE,
        "marks": MARKS,
        "answers": overview.ANSWERS,
        "labels": _labels(views),
        "headline": overview.headline(verdicts),
        "verdicts": verdicts,
        "coverage": overview.coverage(views, experiments),
        "unknown": overview.unknown(held),
        "tables": [grids.table(view, experiments, alone) for view in views.values()],
        "swept": [plots.swept(figure) for figure in drawn if figure.kind == "rates" and figure.panels],
        "inside": [plots.inside(figure) for figure in drawn if figure.kind == "inside" and figure.panels],
        "missing": plots.missing(drawn),
        "hours": _hours(space.hours, experiments),
        "speed": plots.speed(space.root / "results" / "benchmarks"),
        "costs": COSTS,
        "sweeps": {name: {"runs": sweep.runs, "pool": sweep.pool.held} for name, sweep in sorted(sweeps.items())},
    }


@dataclasses.dataclass
class _Sweep:
    """The runs of an experiment, and what several of them say."""

    runs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    pool: Pool = dataclasses.field(default_factory=Pool)


def _hours(hours: GpuHours, experiments: Mapping[str, Experiment]) -> dict[str, Any]:
    """Return the card that hours are for, and what they rest on for each model."""
    models = dict.fromkeys(model for experiment in experiments.values() for model in experiment.sweep["model"])
    return {"card": hours.card, "basis": {model: hours.basis([model]) for model in models}}


def _labels(views: Mapping[str, TableView]) -> dict[str, str]:
    """Return method -> what most tables call it."""
    lines = [line for view in views.values() for block in view.blocks for line in block.lines if line.source is None]
    counted: dict[str, Counter[str]] = {}
    for line in lines:
        counted.setdefault(line.choices["method"], Counter())[plain(line.method)] += 1
    return {method: counts.most_common(1)[0][0] for method, counts in sorted(counted.items())}


def _run(record: Record, pool: Pool, experiment: Experiment | None, alone: frozenset[str], most: int) -> dict[str, Any]:
    identity, told, made = record.identity, record.origin, provenance.maker(record)
    headline = record.scores.headline
    found = {
        "status": record.status,
        "message": plain(record.message),
        **{part: plain(identity[part].get("label") or record.name(part)) for part in ("model", "task", "method")},
        **{part: record.name(part) for part in ("protocol", "profile", "recipe")},
        "seed": None if record.untrained else record.seed,
        "settings": [
            pool.place_of(part, held, lambda part, held: plain(provenance.dotted(part, held)))
            for part, held in provenance.sections(record).items()
        ],
        "off": plain(provenance.off_recipe(record)),
        "sources": pool.place(plain(told.get("recipe_sources") or {})),
        "trials": record.trials,
        "headline": [headline.metric, number(headline.value), headline.subset, headline.checkpoint, headline.scoring]
        if headline
        else None,
        "scores": [_measurement(measurement, pool) for measurement in record.scores.measurements],
        "notes": [pool.place(plain(note)) for note in record.scores.notes],
        "samples": [[pool.place(plain([one.input, one.reference])), plain(one.reply)] for one in record.scores.samples],
        "curves": {name: _curve(points, pool, most) for name, points in _plain_curves(record).items() if points},
        "cost": _cost(record),
        "execution": pool.place(plain(record.execution)),
        "alone": record.run_id in alone,
        "origin": pool.place(plain({name: text for name, text in made.items() if name != "typed"})),
        "typed": plain(made.get("typed", "")),
        "times": [plain(str(told.get(name) or "")) for name in ("started", "finished")],
        "again": plain(provenance.command(record, [experiment] if experiment else [])),
    }
    return without_blanks(found)


def _measurement(measurement: Measurement, pool: Pool) -> list[Any]:
    """Return where it was taken (in the pool), items, unreadable replies, whether at chance, metrics, their errors."""
    where = [measurement.subset, measurement.split, measurement.checkpoint, measurement.scoring, measurement.chance]
    metrics = {name: number(value) for name, value in measurement.metrics.items()}
    errors = {name: number(error, 3) for name in metrics if (error := _standard_error(measurement, name)) is not None}
    flag = None if measurement.at_chance is None else int(measurement.at_chance)
    return [pool.place(plain(where)), measurement.items, measurement.unreadable, flag, plain(metrics), plain(errors)]


def _standard_error(measurement: Measurement, metric: str) -> float | None:
    """Return the standard error of an accuracy over its items, as lm-eval prints it; None for what is no mean of 0/1.

    Source: lm_eval.api.metrics.mean_stderr, the sample standard deviation over the square root of the items.
    """
    value, items = measurement.metrics[metric], measurement.items
    if not metric.startswith("accuracy") or measurement.subset == "average" or value is None or items < 2:
        return None
    return math.sqrt(value * (1 - value) / (items - 1))


def _plain_curves(record: Record) -> dict[str, Any]:
    """Return the curves that are [step, value]; diagnostics are a report by layer, in a figure of their own."""
    return {name: points for name, points in record.curves.items() if isinstance(points, list)}


def _curve(points: Sequence[Sequence[Any]], pool: Pool, most: int) -> list[Any]:
    """Return the place of a curve's steps in the pool, and its values."""
    shown = thinned(points, most)
    return [pool.place([step for step, _ in shown]), [number(value, CURVE_DIGITS) for _, value in shown]]


def _cost(record: Record) -> list[float | int | None]:
    """Return what the run took, in the order of `COSTS`; of memory the largest peak of any rank."""
    cost = vars(record.cost) | {"peak_memory_bytes": max(record.cost.peak_memory_bytes, default=None)}
    return [value if isinstance(value := cost[name], int) else number(value) for name in COSTS]  # counts are exact
