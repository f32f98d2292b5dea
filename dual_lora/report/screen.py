"""The comparison a run prints when it ends: one row per record, scores next to costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from dual_lora.records.schema import Measurement, Record, parse
from dual_lora.report import escape
from dual_lora.report.terminal import FittedTable

UNBOUNDED = frozenset(
    {"NIST", "NIST_python", "CIDEr", "loss", "full_sequence_loss"}
)  # every other metric is a fraction and is shown in percent
GIB = 1024**3
LOWER_IS_BETTER = frozenset({"TER", "loss", "full_sequence_loss"})  # TER counts edits
_COSTS = ("train s", "eval s", "peak GiB", "trainable")


def comparison(records: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]] | None = None) -> FittedTable:
    """Return a table with one row per record: scores, seconds, peak memory, trainable parameters.

    `records` are record dictionaries as `results/records/*.json` hold them; if the first is the untrained base (method
    `none`), the rows below show their difference from it. `columns` are (subset, metric) pairs; by default every
    metric of the headline's subset, or the headline's metric of every subset where there are several.
    Raises `RecordError` for a record that cannot be read.
    """
    rows = [parse(values) for values in records]
    columns = list(columns) if columns is not None else _default_columns(rows)
    subsets = {subset for subset, _ in columns}
    headings = [f"{metric if len(subsets) == 1 else subset}{_unit(metric)}" for subset, metric in columns]
    base = rows[0] if rows and rows[0].name("method") == "none" else None
    show_seed = len({row.seed for row in rows}) > 1
    lines: list[list[str | Text]] = [
        [
            _label(record, show_seed=show_seed),
            *(_score(record, subset, metric, None if record is base else base) for subset, metric in columns),
            *_cost(record),
        ]
        for record in rows
    ]
    return FittedTable(["method", *headings, *_COSTS], lines, _title(rows))


def _unit(metric: str) -> str:
    return "" if metric in UNBOUNDED else " %"


def shown(record: Record) -> list[Measurement]:
    """Return the measurements the record's headline belongs to: its scoring, checkpoint and split."""
    headline = record.scores.headline
    if headline is None:
        return []
    same = [
        m for m in record.scores.measurements if (m.scoring, m.checkpoint) == (headline.scoring, headline.checkpoint)
    ]
    splits = [m.split for m in same if m.subset == headline.subset and headline.metric in m.metrics]
    # A checkpoint may be scored on validation too; the headline is the test's where there is one.
    split = "test" if "test" in splits else splits[0] if splits else None
    return [m for m in same if m.split == split]


def _default_columns(rows: Sequence[Record]) -> list[tuple[str, str]]:
    for record in rows:
        headline, measurements = record.scores.headline, shown(record)
        if headline is None or not measurements:
            continue
        if len(measurements) > 1:
            return [(m.subset, headline.metric) for m in measurements if headline.metric in m.metrics]
        return [(measurements[0].subset, metric) for metric in measurements[0].metrics]
    return []


def _value(record: Record, subset: str, metric: str) -> float | None:
    return next((m.metrics.get(metric) for m in shown(record) if m.subset == subset), None)


def _score(record: Record, subset: str, metric: str, base: Record | None) -> Text:
    value = _value(record, subset, metric)
    if value is None:
        return Text("" if record.status == "finished" else "-", style="dim")
    scale, decimals = (1.0, 2) if metric in UNBOUNDED else (100.0, 1)
    text = Text(f"{value * scale:.{decimals}f}")
    start = _value(base, subset, metric) if base is not None else None
    if start is not None:
        better = (value < start) if metric in LOWER_IS_BETTER else (value > start)
        text.append(f" ({(value - start) * scale:+.{decimals}f})", style="green" if better else "red")
    return text


def _cost(record: Record) -> list[str]:
    cost = record.cost
    memory = max(cost.peak_memory_bytes, default=None)
    return [
        "" if cost.train_seconds is None else f"{cost.train_seconds:.0f}",
        "" if cost.eval_seconds is None else f"{cost.eval_seconds:.0f}",
        "" if memory is None else f"{memory / GIB:.2f}",
        "" if cost.trainable_parameters is None else f"{cost.trainable_parameters:,}",
    ]


def _label(record: Record, *, show_seed: bool) -> Text:
    text = Text(escape.terminal(str(record.identity["method"].get("label") or record.name("method"))))
    if show_seed:
        text.append(f" seed {record.seed}")
    if record.status != "finished":
        text.append(f" {record.status}", style="bold red")
    return text


def _title(rows: Sequence[Record]) -> str:
    names = []
    for part in ("model", "task"):
        labels = {str(row.identity[part].get("label") or row.name(part)) for row in rows}
        if len(labels) == 1:
            names.append(labels.pop())
    names += sorted({f"profile {row.name('profile')}, protocol {row.name('protocol')}" for row in rows})
    items = sum(m.items for m in shown(rows[0]) if m.subset != "average") if rows else 0
    return ", ".join([*names, f"{items:,} items"])
