"""A sweep while it runs: what is done, what runs and until when, what failed and why, what is left.

    view = look(chosen, records, results)      # from files alone: any results folder, also of another machine's disk
    console.print(view.shown("nlg_smollm2"))

Seconds left are those of runs like it: of a training run from its own last steps, of others from finished runs of the
same model, task and method, else of the same model and task, else of all.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from dual_lora.records import read_steps
from dual_lora.records.schema import Record
from dual_lora.report.progress import OPEN, Progress
from dual_lora.report.terminal import FittedTable

_RECENT = 5  # lines of a curve: some ten steps each
_SHOWN = 12  # runs of a kind


@dataclass(frozen=True)
class Chosen:
    """A run of a sweep: how it is called, its choices by setting, its state and its id (empty: not begun)."""

    title: str
    choices: Mapping[str, str]
    state: str
    run_id: str


@dataclass(frozen=True)
class Running:
    """A run at work: its step of how many (None: not known), and the seconds that are left (None: not known)."""

    title: str
    step: int
    steps: int | None
    seconds_left: float | None
    doing: str


@dataclass(frozen=True)
class View:
    """What there is to see at one moment. `gpu_seconds_left` is None before any run of the sweep has finished."""

    states: Counter[str]
    running: tuple[Running, ...]
    failed: tuple[tuple[str, str], ...]  # title, message
    gpu_seconds_left: float | None
    seconds_left: float | None  # with as many runs at a time as now

    @property
    def over(self) -> bool:
        """Whether nothing runs or waits in a queue, and nothing is left that the same command would start."""
        return not any(self.states[state] for state in ("running", "queued", *OPEN))

    def shown(self, title: str) -> Group:
        """Return what a terminal shows."""
        total = sum(self.states.values())
        counts = ", ".join(f"{count} {state}" for state, count in self.states.most_common())
        lines: list[Any] = [Text(f"{title}: {self.states['done']} of {total} done ({counts or 'no runs'})")]
        if self.running:
            rows = [
                [run.title, run.doing, f"{run.step}/{run.steps or '?'}", _clock(run.seconds_left)]
                for run in self.running[:_SHOWN]
            ]
            lines.append(FittedTable(["running", "does", "step", "left"], rows, keys=1))
        for name, message in self.failed[:_SHOWN]:
            lines.append(Text(f"failed: {name}: {message}"))
        if len(self.failed) > _SHOWN:
            lines.append(Text(f"... and {len(self.failed) - _SHOWN} more that failed"))
        if not self.over:
            known = self.gpu_seconds_left is not None
            hours = (
                f"{(self.gpu_seconds_left or 0.0) / 3600:.2f} GPU-hours" if known else "not known before one is done"
            )
            lines.append(Text(f"left: {hours}; {_clock(self.seconds_left)} at this pace"))
        return Group(*lines)


def of_experiment(runs: Iterable[Progress], sweep: Mapping[str, Sequence[str]]) -> list[Chosen]:
    """Return the runs of an experiment, called by what its sweep varies."""
    varied = [key for key, values in sweep.items() if len(values) > 1]
    return [
        Chosen(" ".join(f"{key}={run.choices[key]}" for key in varied), run.choices, run.state, run.run_id)
        for run in runs
    ]


def of_folder(runs: Iterable[tuple[Record, str]], titles: Mapping[str, str]) -> list[Chosen]:
    """Return the runs of a results folder, whatever sweep they are of. titles: of those that a sweep has named."""
    parts = ("model", "task", "method", "profile")
    found = []
    for record, state in runs:
        choices = {part: record.name(part) for part in parts} | {"seed": str(record.seed)}
        title = " ".join(f"{key}={value}" for key, value in choices.items())
        found.append(Chosen(titles.get(record.run_id, title), choices, state, record.run_id))
    return found


def look(chosen: Sequence[Chosen], records: Iterable[Record], results: Path) -> View:
    """Return the state of these runs; `results` holds records/ and runs/."""
    held = {record.run_id: record for record in records}
    finished = [record for record in held.values() if record.status == "finished" and record.cost.train_seconds]
    ids = {run.run_id for run in chosen}
    own = [record for record in finished if record.run_id in ids] or finished
    running = tuple(_running(run, own, results / "runs" / run.run_id) for run in chosen if run.state == "running")
    failed = tuple(
        (run.title, f"{run.state}: {(held[run.run_id].message or '').partition(chr(10))[0]}")
        for run in chosen
        if run.run_id in held and run.state not in (*OPEN, "done", "running")
    )
    open_seconds = [_seconds(run, own) for run in chosen if run.state in OPEN]
    left = [*(run.seconds_left for run in running), *open_seconds]
    known = None if any(seconds is None for seconds in left) else sum(seconds or 0.0 for seconds in left)
    shared = max([record.parallel for record in own], default=1)
    return View(
        Counter(run.state for run in chosen),
        running,
        failed,
        None if known is None else known / max(1, shared),
        None if known is None else known / max(1, len(running)),
    )


def _running(run: Chosen, finished: Sequence[Record], folder: Path) -> Running:
    lines = read_steps(folder / "curves.jsonl")
    steps = _planned(folder / "planned.json")
    trained = [line for line in lines if line.get("losses")]
    step = int(trained[-1]["step"]) if trained else 0
    like = _like(run, finished)
    evaluation = _mean([record.cost.eval_seconds for record in like]) or 0.0
    if (folder / "trained.json").exists():
        return Running(run.title, step, steps, evaluation or None, "evaluates")
    timed = [(len(line["losses"]), float(line.get("seconds") or 0.0)) for line in trained[-_RECENT:]]
    done, took = sum(count for count, _ in timed), sum(seconds for _, seconds in timed)
    if not done or steps is None:
        return Running(run.title, step, steps, _seconds(run, finished), "trains" if done else "starts")
    return Running(run.title, step, steps, (steps - step) * took / done + evaluation, "trains")


def _seconds(run: Chosen, finished: Sequence[Record]) -> float | None:
    """Return what runs like this one took, on average."""
    like = _like(run, finished)
    return _mean([(record.cost.train_seconds or 0.0) + (record.cost.eval_seconds or 0.0) for record in like])


def _like(run: Chosen, finished: Sequence[Record]) -> list[Record]:
    for parts in (("model", "task", "method"), ("model", "task"), ()):
        found = [record for record in finished if all(record.name(part) == run.choices.get(part) for part in parts)]
        if found:
            return found
    return []


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _planned(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of an older run, or being written


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
