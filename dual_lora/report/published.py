"""The numbers other papers printed, each with its source (`results/published/*.csv`, columns in the README there)."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("table", "model", "method", "trainable", "task", "metric", "value", "source", "second_hand")


class PublishedError(ValueError):
    """A file of published numbers that cannot be used; the message names file and line."""


@dataclass(frozen=True)
class Published:
    """One printed number, on the scale it was printed on."""

    table: str
    model: str
    method: str
    trainable: str  # as printed: a share of the model ("0.83 %") or a count ("0.3M")
    task: str
    metric: str
    value: float
    sd: float | None  # the source's own spread
    source: str
    second_hand: bool  # read in a text about the paper, not in the paper


def read(folder: Path, name: str) -> list[Published]:
    """Return the rows of `<folder>/<name>.csv`, spreads joined to their values. Raises `PublishedError`."""
    path = folder / f"{name}.csv"
    if not path.exists():
        legal = ", ".join(sorted(p.stem for p in folder.glob("*.csv"))) or "none"
        raise PublishedError(f"{path} does not exist; published files there: {legal}")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise PublishedError(f"{path}:1: columns {reader.fieldnames}; expected {', '.join(COLUMNS)}")
        rows = [_row(line, f"{path}:{number}") for number, line in enumerate(reader, start=2)]
    spreads = {_key(row, row.metric.removesuffix("_std")): row.value for row in rows if row.metric.endswith("_std")}
    values = [row for row in rows if not row.metric.endswith("_std")]
    return [Published(**{**vars(row), "sd": spreads.get(_key(row, row.metric))}) for row in values]


def differences(folder: Path, names: Iterable[str]) -> list[Published]:
    """Return what these files state as points of one method more than another: `method` is "A minus B"."""
    return [row for name in names for row in read(folder, name) if row.metric == "delta_points"]


def _row(line: dict[str, str], where: str) -> Published:
    try:
        value = float(line["value"])
    except (TypeError, ValueError):
        raise PublishedError(f"{where}: value={line['value']!r} is not a number") from None
    if not line["source"]:
        raise PublishedError(f"{where}: a published number needs its source")
    if line["second_hand"] not in ("yes", "no"):
        raise PublishedError(f"{where}: second_hand={line['second_hand']!r}: yes or no")
    names = {key: line[key] for key in ("table", "model", "method", "trainable", "task", "metric", "source")}
    return Published(**names, value=value, sd=None, second_hand=line["second_hand"] == "yes")


def _key(row: Published, metric: str) -> tuple[str, ...]:
    return (row.table, row.model, row.method, row.trainable, row.task, metric, row.source)
