"""The comparison a run prints when it ends: one row per record, scores next to costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from rich.text import Text

from dual_lora.records.schema import Measurement, Record, parse
from dual_lora.report import escape
from dual_lora.report.terminal import FittedTable

UNBOUNDED = frozenset(
    {"NIST", "NIST_python", "CIDEr", "loss", "full_sequence_loss"}
)  # every other metric is a fraction and is shown in percent
LOWER_IS_BETTER = frozenset({"TER", "loss", "full_sequence_loss"})  # TER counts edits
_COSTS = ("train s", "eval s", "peak GiB", "trainable")


def comparison(records: Sequence[Record | Mapping[str, Any]]) -> FittedTable:
    """Return a table with one row per record: scores, seconds, peak memory, trainable parameters.

    `records` are typed, or dictionaries as their files hold them; if the first is the untrained base (method
    `none`), the rows below show their difference from it. The columns are every metric of the headline's subset, or
    the headline's metric of every subset where there are several. Raises `RecordError` for a record that cannot be
    read.
    """
    rows = [values if isinstance(values, Record) else parse(values) for values in records]
    columns = _columns(rows)
    subsets = {subset for subset, _ in columns}
    headings = [f"{metric if len(subsets) == 1 else subset}{_unit(metric)}" for subset, metric in columns]
    base = rows[0] if rows and rows[0].name("method") == "none" else None
    labels = _labels(rows)
    lines: list[list[str | Text]] = []
    several = len({row.seed for row in rows}) > 1
    for label, group in labels.items():
        for record in group:
            start = None if record is base else base
            cells = [_score(record, subset, metric, start) for subset, metric in columns]
            seed = f" seed {record.seed}" if len(group) > 1 or several else ""
            lines.append([_with_status(f"{label}{seed}", record), *cells, *_cost(record)])
        finished = [record for record in group if record.status == "finished"]
        if len(finished) > 1:
            spread = [
                _spread([_value(record, subset, metric) for record in finished], metric) for subset, metric in columns
            ]
            lines.append([Text(f"{label} mean ± sd, n={len(finished)}", style="bold"), *spread, *[""] * len(_COSTS)])
    return FittedTable(["method", *headings, *_COSTS], lines, _title(rows))


def _labels(rows: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the rows by method and whatever setting besides the seed tells two rows of it apart, in their order."""
    by_method: dict[str, list[Record]] = {}
    for row in rows:
        label = escape.terminal(str(row.identity["method"].get("label") or row.name("method")))
        by_method.setdefault(label, []).append(row)
    found: dict[str, list[Record]] = {}
    for label, group in by_method.items():
        settings = [dict(_settings(row)) for row in group]
        names = dict.fromkeys(name for values in settings for name in values)
        varied = [name for name in names if len({repr(values.get(name)) for values in settings}) > 1]
        choices = [name for name in varied if name.endswith(".name")]  # another task brings settings of its own
        parts = tuple(name.removesuffix("name") for name in choices)
        varied = choices + [name for name in varied if not name.startswith(parts or "-")]
        for row, values in zip(group, settings, strict=True):
            words = ", ".join(
                f"{name.removesuffix('.name').rpartition('.')[2]}={values.get(name)}" for name in varied[:3]
            )
            found.setdefault(f"{label} {escape.terminal(words)}".strip(), []).append(row)
    return found


def _settings(record: Record) -> Iterator[tuple[str, Any]]:
    for part in ("model", "task", "method", "recipe", "protocol", "profile"):
        held = {**record.identity[part]}
        for name, value in {**held, **held.pop("settings", {})}.items():
            if name not in ("label", "hash", "fingerprint", "settings", "optimizer") and not isinstance(value, Mapping):
                yield f"{part}.{name}", value


def _spread(values: Sequence[float | None], metric: str) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    scale, decimals = shown_as(metric)
    return f"{mean(known) * scale:.{decimals}f} ± {stdev(known) * scale:.{decimals}f}"


def shown_as(metric: str) -> tuple[float, int]:
    """Return what a metric is multiplied by where people read it, and the decimals: fractions are shown in percent."""
    return (1.0, 2) if metric in UNBOUNDED else (100.0, 1)


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


def _columns(rows: Sequence[Record]) -> list[tuple[str, str]]:
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
    scale, decimals = shown_as(metric)
    text = Text(f"{value * scale:.{decimals}f}")
    start = _value(base, subset, metric) if base is not None else None
    if start is not None:
        better = (value < start) if metric in LOWER_IS_BETTER else (value > start)
        text.append(f" ({(value - start) * scale:+.{decimals}f})", style="green" if better else "red")
    return text


def _cost(record: Record) -> list[str]:
    cost = record.cost
    return [
        "" if cost.train_seconds is None else f"{cost.train_seconds:.0f}",
        "" if cost.eval_seconds is None else f"{cost.eval_seconds:.0f}",
        "" if cost.peak_gib is None else f"{cost.peak_gib:.2f}",
        "" if cost.trainable_parameters is None else f"{cost.trainable_parameters:,}",
    ]


def _with_status(label: str, record: Record) -> Text:
    text = Text(label)
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
