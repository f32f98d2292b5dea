"""How far a sweep is: each run's state, from records and from the folders of runs that have none yet."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dual_lora.records.lock import STALE_SECONDS
from dual_lora.records.schema import Record
from dual_lora.records.sweeps import announced
from dual_lora.report import selection
from dual_lora.report.definition import Experiment

OPEN = ("missing", "stopped", "interrupted", "timed_out")  # what the same command starts or continues
_TAKEN = ("running", "queued")


@dataclass(frozen=True)
class Progress:
    """A run of a sweep: done, running, queued, missing, stopped, or the status of a record that is not finished."""

    choices: Mapping[str, str]
    state: str
    run_id: str = ""


def progress(
    experiment: Experiment, records: Sequence[Record], runs: Path, queued: Collection[str] = ()
) -> list[Progress]:
    """Return the state of every run, in the order of the sweep. `queued`: ids of those for which a job waits."""
    known = [record for record in records if selection.in_sweep(record, experiment)]
    begun = [(record, state) for record, state in _begun(runs, queued) if selection.in_sweep(record, experiment)]
    return [_state(choices, known, begun) for choices in experiment.runs()]


def every_run(records: Sequence[Record], runs: Path, queued: Collection[str] = ()) -> list[tuple[Record, str]]:
    """Return each run that has a record or a folder, or that a sweep will do, with its state.

    The state is done, running, queued, stopped, missing (of a sweep, not begun), or the status of a record.
    """
    begun = {record.run_id: (record, state) for record, state in _begun(runs, queued)}
    found: dict[str, tuple[Record, str]] = {}
    for record in records:
        state = "done" if record.status == "finished" else record.status
        now = begun.get(record.run_id, (record, ""))[1]
        found[record.run_id] = (record, now if now in _TAKEN and state != "done" else state)
    found |= {name: held for name, held in begun.items() if name not in found}
    waiting = ((name, record) for name, (_, record) in announced(runs).items() if name not in found)
    return [*found.values(), *((record, "missing") for _, record in waiting)]


def _state(choices: Mapping[str, str], records: Sequence[Record], begun: Sequence[tuple[Record, str]]) -> Progress:
    held = [record for record in records if selection.belongs(record, choices)]
    finished = next((record for record in held if record.status == "finished"), None)
    if finished is not None:
        return Progress(choices, "done", finished.run_id)
    runs = [(record, state) for record, state in begun if selection.belongs(record, choices)]
    taken = next(((record, state) for record, state in runs if state in _TAKEN), None)
    if taken is not None:
        return Progress(choices, taken[1], taken[0].run_id)
    if held:
        return Progress(choices, held[0].status, held[0].run_id)
    return Progress(choices, "stopped", runs[0][0].run_id) if runs else Progress(choices, "missing")


def _begun(runs: Path, queued: Collection[str]) -> list[tuple[Record, str]]:
    """Return the runs that were begun or wait, as records without scores, with "running", "queued" or "stopped"."""
    found = [
        (record, "queued")
        for name, (_, record) in announced(runs).items()
        if name in queued and not (runs / name / "config.json").exists()
    ]
    for path in sorted(runs.glob("*/config.json")):
        try:
            identity = json.loads(path.read_text(encoding="utf-8"))
            lock = path.with_name("lock.json")
            fresh = lock.exists() and time.time() - lock.stat().st_mtime < STALE_SECONDS
        except (OSError, ValueError):
            continue  # a run that is being made or removed right now
        record = Record(status="interrupted", identity={**identity, "run_id": path.parent.name})
        found.append((record, "running" if fresh else "queued" if record.run_id in queued else "stopped"))
    return found
