"""A few generations before and after training, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from dual_lora import examples


def side_by_side(prepared: list[Any]) -> Table | None:
    """Return a table of `profile.samples` test inputs with the base model's and the trained model's replies.

    None unless the last run's profile asks for it and both runs left predictions.
    """
    last = prepared[-1]
    count = last.config.profile.samples
    base = next((item for item in prepared if item.config.method.trains == "nothing"), None)
    if not count or base is None or base is last:
        return None
    before = _replies(base.folder / "predictions" / "base.test.generate.jsonl")
    after = _replies(last.folder / "predictions" / "last.test.generate.jsonl")
    if not before or not after:
        return None
    items = examples.select(last.task, last.config).test
    table = Table(title="Before and after training, on inputs not trained on", title_justify="left", show_lines=True)
    table.add_column("input", ratio=2)
    table.add_column("before", ratio=3)
    table.add_column(f"after ({last.config.method.label})", ratio=3)
    for index in range(0, len(items), max(1, len(items) // count)):
        if table.row_count < count:
            prompt = last.task.render(items[index], training=False).prompt
            table.add_row(prompt.strip(), before.get(index, "").strip(), after.get(index, "").strip())
    return table


def _replies(path: Path) -> dict[int, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return {entry["index"]: entry["value"] for entry in map(json.loads, lines)}
