"""Two runs next to each other: the settings that differ, then scores and costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dual_lora import shipped
from dual_lora.config import nearest
from dual_lora.records.schema import Record
from dual_lora.report import provenance
from dual_lora.report.screen import UNBOUNDED
from dual_lora.report.terminal import FittedTable

_HASH = re.compile("[0-9a-f]{32,}")


def find(name: str, records: Sequence[Record]) -> Record:
    """Return the record whose run id is `name` or alone begins so. Raises `ValueError`."""
    fitting = [record for record in records if record.run_id.startswith(name)]
    exact = [record for record in fitting if record.run_id == name]
    if len(exact or fitting) == 1:
        return (exact or fitting)[0]
    if fitting:
        raise ValueError(f"run {name!r}: {len(fitting)} records begin so: {', '.join(r.run_id for r in fitting[:5])}")
    close = nearest(name, [record.run_id for record in records])
    close = close or f"; {shipped.program()} status lists them"
    raise ValueError(f"no record of run {name!r} among {len(records):,}{close}")


def tables(one: Record, other: Record) -> list[FittedTable]:
    """Return what differs in the settings, the scores of both with the difference, and what they took."""
    ours, theirs = ({**provenance.settings(run), "seed": run.seed} for run in (one, other))
    settings = [[name, _text(ours, name), _text(theirs, name)] for name in provenance.different(ours, theirs)]
    alike = len(ours.keys() | theirs.keys()) - len(settings)
    heads = [f"{run.name('method')} {run.run_id[:8]}" for run in (one, other)]
    costs = (vars(one.cost), vars(other.cost))
    took = [[name, *(_text(cost, name) for cost in costs)] for name in costs[0] if any(cost[name] for cost in costs)]
    made = [provenance.maker(run) for run in (one, other)]
    took += [[name, *(_text(told, name) for told in made)] for name in ("commit", "card")]
    versions = [run.origin.get("versions") or {} for run in (one, other)]
    packages = provenance.different(*versions)
    took += [[name, *(held.get(name, "") for held in versions)] for name in packages]
    equal = len(versions[0].keys() | versions[1].keys()) - len(packages)
    scores = _scores(one, other)
    return [
        FittedTable(["setting", *heads], settings, f"settings that differ ({alike} do not)"),
        FittedTable(["where", "metric", *heads, "difference"], scores, "scores", 2),
        FittedTable(["", *heads], took, f"cost and origin ({equal} versions do not differ)"),
    ]


def _scores(one: Record, other: Record) -> list[list[str]]:
    sides = [
        {
            (m.subset, m.split, m.checkpoint, m.scoring, metric): value
            for m in run.scores.measurements
            for metric, value in m.metrics.items()
        }
        for run in (one, other)
    ]
    rows = []
    for where in dict.fromkeys([*sides[0], *sides[1]]):
        scale, decimals = (1.0, 4) if where[4] in UNBOUNDED else (100.0, 2)
        values = [side.get(where) for side in sides]
        known = [value for value in values if value is not None]
        difference = f"{(known[1] - known[0]) * scale:+.{decimals}f}" if len(known) == 2 else ""
        rows.append(
            [
                ", ".join(where[:-1]),
                where[-1],
                *("" if v is None else f"{v * scale:.{decimals}f}" for v in values),
                difference,
            ]
        )
    return rows


def _text(values: Mapping[str, Any], name: str) -> str:
    """Return a value as text, of a hash its beginning."""
    value = values.get(name)
    if value is None:
        return "none" if name in values else ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return _HASH.sub(lambda found: f"{found[0][:12]}…", text)
