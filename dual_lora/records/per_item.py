"""What a run measured of each test item, small enough for its record: a test over items needs more than an average.

    {"last.test.cloze": {"accuracy": {"boolq": "b1 3270x1 q83v...", ...}}}    # predictions -> metric -> subset -> rows

A metric's rows are per item, in the items' order, what the metric is a function of, summed over the items:

    accuracy, accuracy_normalised    whether the item is right
    matthews_correlation             predicted class, right class (0, 1)
    pearson                          predicted number, right number
    BLEU                             matched n-grams of order 1 to 4, tokens, tokens of the closest reference
    loss                             nats, tokens

They are packed as a dtype (bits, unsigned integers, float16), a shape, and base64 of the bytes, little-endian.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PerItem = dict[str, dict[str, dict[str, str]]]
_DTYPES: dict[str, Any] = {"b1": np.dtype("u1"), "u1": np.dtype("u1"), "u2": np.dtype("<u2"), "f2": np.dtype("<f2")}


def packed(rows: Sequence[Any]) -> str:
    """Return rows of truth values, of integers from 0 to 65,535 or of floats (as float16) as text.

    rows: one per item, each a value or a sequence of values.
    """
    table = np.asarray(rows)
    table = table.reshape(len(table), -1)
    kind = _kind(table)
    content = np.packbits(table.astype(bool)) if kind == "b1" else table.astype(_DTYPES[kind])
    return f"{kind} {table.shape[0]}x{table.shape[1]} {base64.b64encode(content.tobytes()).decode()}"


def unpacked(text: str) -> np.ndarray:
    """Return the rows as float64, (items, values). Raises `ValueError` for a text that `packed` did not make."""
    kind, _, rest = text.partition(" ")
    shape, _, content = rest.partition(" ")
    items, _, values = shape.partition("x")
    if kind not in _DTYPES or not items.isdecimal() or not values.isdecimal():
        raise ValueError(f"per-item rows begin with {text[:20]!r}; expected a dtype ({', '.join(_DTYPES)}) and a shape")
    flat = np.frombuffer(base64.b64decode(content, validate=True), _DTYPES[kind])
    if kind == "b1":
        flat = np.unpackbits(flat)[: int(items) * int(values)]
    return flat.reshape(int(items), int(values)).astype(float)


def apart(measurements: Sequence[Mapping[str, Any]], checkpoint: str) -> tuple[list[dict[str, Any]], PerItem]:
    """Return measurements without their `per_item`, and packed what the test items of one checkpoint hold, and losses.

    checkpoint: the headline's, which a table shows; the others would multiply the size of a record.
    """
    plain, found = [], PerItem()
    for entry in measurements:
        kept = dict(entry)
        rows = kept.pop("per_item", {})
        plain.append(kept)
        if rows and ((entry["split"], entry["checkpoint"]) == ("test", checkpoint) or entry["scoring"] == "loss"):
            metrics = found.setdefault(predictions(entry["checkpoint"], entry["split"], entry["scoring"]), {})
            for metric, values in rows.items():
                metrics.setdefault(metric, {})[entry["subset"]] = packed(values)
    return plain, found


def predictions(checkpoint: str, split: str, scoring: str) -> str:
    """Return the name of a set of predictions: of its file, of its hash and of its rows in the record."""
    return f"{checkpoint}.{split}.{scoring}"


def _kind(table: np.ndarray) -> str:
    if table.dtype == bool:
        return "b1"
    if np.issubdtype(table.dtype, np.integer) and table.min(initial=0) >= 0:
        return "u1" if table.max(initial=0) < 2**8 else "u2"
    return "f2"
