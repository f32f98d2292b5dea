"""All records as tables of one value a row: runs, measurements, curves, diagnostics; as CSV and Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_lora.records.schema import Record
from dual_lora.report import escape, neighbours, provenance, selection
from dual_lora.report.definition import Experiment

_NAMED = ("model", "task", "method", "protocol", "profile")


def tables(records: Sequence[Record], experiments: Iterable[Experiment]) -> dict[str, list[dict[str, Any]]]:
    """Return table name -> its rows. Scores are as records hold them: fractions, unless unbounded."""
    alone, asked = neighbours.alone(records), selection.asked_by(experiments, records)
    return {
        "runs": [_run(record, asked[record.names], record.run_id in alone) for record in records],
        "measurements": [row for record in records for row in _measurements(record)],
        "curves": [
            {"run_id": record.run_id, "curve": name, "step": step, "value": value}
            for record in records
            for name, points in record.curves.items()
            if isinstance(points, list)
            for step, value in points
        ],
        "diagnostics": [row for record in records for row in _diagnostics(record)],
    }


def write(records: Sequence[Record], experiments: Iterable[Experiment], folder: Path) -> list[Path]:
    """Write the tables into a new folder and return their files. Raises `FileExistsError` if it exists."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    folder.mkdir(parents=True)
    written = []
    for name, rows in tables(records, experiments).items():
        names = list(dict.fromkeys(key for row in rows for key in row))
        table = pyarrow.table({key: _column([row.get(key) for row in rows]) for key in names})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
        shown = {key: [escape.csv(v) if isinstance(v, str) else v for v in table[key].to_pylist()] for key in names}
        pyarrow.csv.write_csv(pyarrow.table(shown, schema=table.schema), folder / f"{name}.csv")
        written += [folder / f"{name}.csv", folder / f"{name}.parquet"]
    return written


def _run(record: Record, experiments: Iterable[Experiment], alone: bool) -> dict[str, Any]:
    headline, told = record.scores.headline, record.origin
    shown = [] if selection.is_local_play(record) else experiments
    return {
        "run_id": record.run_id,
        "status": record.status,
        "message": record.message,
        "experiments": ", ".join(one.name for one in shown if selection.in_sweep(record, one)),
        "seed": None if record.untrained else record.seed,
        **({f"headline_{key}": value for key, value in vars(headline).items()} if headline else {}),
        **{f"cost.{key}": value for key, value in vars(record.cost).items() if key != "peak_memory_bytes"},
        "cost.peak_memory_bytes": max(record.cost.peak_memory_bytes, default=None),
        "alone_on_its_card": alone,
        "device": record.execution.get("device"),
        **{key: told.get(key) for key in ("commit", "dirty", "started", "finished", "command")},
        "rates_tried": record.trials,
        **provenance.settings(record),
    }


def _measurements(record: Record) -> Iterable[dict[str, Any]]:
    who: dict[str, Any] = {"run_id": record.run_id, **{part: record.name(part) for part in _NAMED}}
    who["seed"] = None if record.untrained else record.seed
    for measurement in record.scores.measurements:
        rest: Mapping[str, Any] = {k: v for k, v in vars(measurement).items() if k not in ("metrics", "counts")}
        for metric, value in measurement.metrics.items():
            yield {**who, **rest, "metric": metric, "value": value}


def _diagnostics(record: Record) -> Iterable[dict[str, Any]]:
    """Yield what was measured of each layer: once, at the end or in agreement with full fine-tuning, and by step."""
    report = record.curves.get("diagnostics") or {"layers": {}}
    for name, layer in report["layers"].items():
        who = {"run_id": record.run_id, "layer": name}
        once = {key: value for key, value in layer.items() if isinstance(value, int | float)}
        for measure, value in {**once, **layer.get("final", {}), **layer.get("agreement", {})}.items():
            yield {**who, "measure": measure, "step": None, "value": value}
        for measure, values in layer["series"].items():
            for step, value in zip(report["steps"], values, strict=True):
                yield {**who, "measure": measure, "step": step, "value": value}


def _column(values: Sequence[Any]) -> list[Any]:
    """Return a column of one type: numbers, yes and no, or text (JSON where a value is a list or types differ)."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known) or all(isinstance(value, str) for value in known):
        return list(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        whole = all(isinstance(value, int) for value in known)
        return [value if value is None or whole else float(value) for value in values]
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
