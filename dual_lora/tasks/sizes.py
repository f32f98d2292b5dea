"""How much data a run fetches, for plans: `sizes.json` has the bytes of each file and where they were read."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from dual_lora.config import RunConfig

TABLE = Path(__file__).with_suffix(".json")


class Fetched(NamedTuple):
    """Bytes of the files whose size is known, the names of the others, and where the sizes were read."""

    bytes: int
    unknown: tuple[str, ...]
    source: str


def to_fetch(config: RunConfig) -> Fetched:
    """Return what a run's data is to fetch if none of it is in a cache: nothing for local data and the sample."""
    if config.data.source != "hub":
        return Fetched(0, (), "")
    task = config.task.name
    held = _table().get(f"{task} {config.protocol.reference_form}") or _table().get(task)
    if held is None:
        return Fetched(0, (f"data of task={task}",), "")
    sizes: dict[str, int | None] = held["files"]
    known = sum(size for size in sizes.values() if size is not None)
    return Fetched(known, tuple(name for name, size in sizes.items() if size is None), held["source"])


@functools.cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found
