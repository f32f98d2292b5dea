"""Which runs a sweep will do, next to its runs (`runs/ID.sweep.json`): one that has not begun leaves no other trace.

    place = announce(results, {run_id: (title, identity), ...})   # before the first one starts
    place.unlink()                                                # once every run has its record
    announced(results / "runs")                                   # {run_id: (title, a record without scores)}

A sweep that was stopped leaves its file: the same command does the rest and writes the same file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dual_lora.records.schema import GROUPS, Record
from dual_lora.records.storage import UNREADABLE, digest, write_json


def announce(results: str | Path, runs: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Path:
    """Write what a sweep will do and return the file."""
    told = {
        run_id: {"title": title, "seed": identity["seed"], **{part: identity[part]["name"] for part in GROUPS}}
        for run_id, (title, identity) in runs.items()
    }
    path = Path(results) / "runs" / f"{digest(sorted(told), 12)}.sweep.json"
    write_json(path, told)
    return path


def announced(runs: Path) -> dict[str, tuple[str, Record]]:
    """Return title and names of each run of each sweep. A file that is being made, or is damaged, says nothing."""
    found = {}
    for path in sorted(runs.glob("*.sweep.json")):
        try:
            for run_id, told in json.loads(path.read_text(encoding="utf-8")).items():
                names = {part: {"name": str(told[part])} for part in GROUPS}
                identity = {**names, "run_id": run_id, "seed": int(told["seed"])}
                found[run_id] = (str(told["title"]), Record(status="interrupted", identity=identity))
        except (OSError, *UNREADABLE):
            continue
    return found
