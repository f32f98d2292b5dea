"""Show which runs of an experiment are done, running, failed or missing, and the commands that run the rest.

    python run.py status table_commonsense
    python run.py status                             # every run of results/, of whatever sweep
    python run.py status results=FOLDER              # of another results folder
    python run.py status table_glue --runs           # one line per run
    python run.py status table_glue --missing        # only the commands, for a script
    python run.py status table_glue --hours          # and the GPU-hours of the rest
    python run.py status mine 'hydra.searchpath=[file://FOLDER]'    # of a method of your own: docs/own_method.md
    python run.py status table_glue --watch          # while a sweep runs, every 5 seconds; Ctrl-C leaves

A run is done if its record says finished, running while a process holds its lock, queued while SLURM has a job for it,
and stopped if it was begun and no process holds its lock (the same command continues it). Runs that a sweep has not
begun are missing, also of a sweep without an experiment file: results/runs/*.sweep.json names them until all have a
record (delete it to forget them).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from rich.live import Live

from dual_lora import shipped
from dual_lora.commands.parser import Parser
from dual_lora.config import ConfigError
from dual_lora.records import slurm_queue
from dual_lora.records.schema import Record
from dual_lora.records.sweeps import announced
from dual_lora.report import own_files, records, selection, terminal, watching
from dual_lora.report.definition import Experiment
from dual_lora.report.progress import OPEN, Progress, every_run, progress
from dual_lora.report.terminal import FittedTable
from dual_lora.report.workspace import Workspace
from dual_lora.runs.sweep_cost import cost_of


def options(parser: Parser) -> None:
    parser.add_argument("experiment", nargs="?", help="a name in experiments/, without .yaml; without one: every run")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="a results folder; default: HOME/results")
    parser.take_searchpath()
    parser.add_argument("--runs", action="store_true", help="one line per run")
    parser.add_argument("--missing", action="store_true", help="print only the commands that run what is not done")
    parser.add_argument("--hours", action="store_true", help="also estimate the GPU-hours of what is not done")
    parser.add_argument("--watch", action="store_true", help="refresh until all is done or Ctrl-C: steps, time left")
    parser.add_argument("--home", type=Path, metavar="FOLDER", default=shipped.home(), help="what holds results/")


def run(options: argparse.Namespace) -> int:
    """Return 0 if every run is done, 1 when some are not. Raises `ValueError` for a file that cannot be used."""
    space, results = Workspace(options.home), options.results or options.home / "results"
    if not results.is_dir():
        raise ValueError(f"{results}: no such results folder")
    if options.watch:
        return watch(space, options.experiment, results)
    held, refused = records.read_all(results / "records")
    terminal.name_refused(refused)
    if options.experiment is None:
        if options.missing or options.hours:
            raise ValueError(
                "--missing and --hours are of an experiment: name it, one of experiments/ without .yaml; the command "
                "that began another sweep runs the rest of it"
            )
        return _show_all(every_run(held, results / "runs", _queued(held, results)), results)
    experiment = space.experiment(options.experiment)
    runs = progress(experiment, held, results / "runs", _queued(held, results))
    try:
        commands, lacking = _to_do(experiment, runs, results, options.searchpath), ""
    except ConfigError as error:
        commands, lacking = [], str(error)
    if options.missing and commands:
        print(*map(shipped.typed, commands), sep="\n")
    elif options.missing:
        print(lacking or _nothing_to_start(runs), file=sys.stderr)  # a script reads the commands
    else:
        _show(experiment, runs, commands, one_line_each=options.runs)
        if lacking:
            print(f"\nNo commands for the rest: {lacking}")
        if options.hours and commands:
            print(f"\nThe rest takes: {cost_of(commands)}")
    return 0 if all(run.state == "done" for run in runs) else 1


def _to_do(experiment: Experiment, runs: list[Progress], results: Path, searchpath: str | None) -> list[str]:
    """Return the commands for what is not done. Raises `ConfigError` if they lack where files of one's own are."""
    begun = [run.choices for run in runs if run.state in OPEN]
    failed = [run.choices for run in runs if run.state not in (*OPEN, "done", "running", "queued")]
    if not begun and not failed:
        return []
    more = [*shipped.word_for(results), *own_files.words([experiment], searchpath, results / "runs")]
    again = selection.to_do(experiment, failed, retry=True, more=more)
    return [*selection.to_do(experiment, begun, more=more), *again]


def _nothing_to_start(runs: list[Progress]) -> str:
    total = Counter(run.state for run in runs)
    rest = "".join(f", {total[state]} {state}" for state in ("running", "queued") if total[state])
    return f"nothing is missing: {total['done']} of {len(runs)} runs are done{rest}"


def watch(
    space: Workspace, experiment: str | None, results: Path, *, seconds: float = 5.0, ticks: int | None = None
) -> int:
    """Show what runs until all is done or Ctrl-C, `ticks` times at most. Returns 0 if all is done, else 1."""
    title, view = experiment or str(results), None
    with (
        Live(console=terminal.console(), auto_refresh=False, vertical_overflow="visible") as live,
        suppress(KeyboardInterrupt),
    ):
        while view is None or not (view.over or ticks == 0):
            if view is not None:
                time.sleep(seconds)
            view = _look(space, experiment, results)
            live.update(view.shown(title), refresh=True)
            ticks = None if ticks is None else ticks - 1
    return 0 if view is not None and view.over and set(view.states) <= {"done"} else 1


def _look(space: Workspace, experiment: str | None, results: Path) -> watching.View:
    held, _ = records.read_all(results / "records")
    queued = _queued(held, results)
    if experiment is None:
        titles = {run_id: title for run_id, (title, _) in announced(results / "runs").items()}
        chosen = watching.of_folder(every_run(held, results / "runs", queued), titles)
    else:
        definition = space.experiment(experiment)
        chosen = watching.of_experiment(progress(definition, held, results / "runs", queued), definition.sweep)
    return watching.look(chosen, held, results)


def _queued(held: list[Record], results: Path) -> set[str]:
    """Return the ids of runs that are not done and for which SLURM has a job."""
    done = {record.run_id for record in held if record.status == "finished"}
    folders = (path.parent for path in (results / "runs").glob("*/slurm.json") if path.parent.name not in done)
    return {folder.name for folder in slurm_queue.queued(folders)}


def _show_all(runs: list[tuple[Record, str]], results: Path) -> int:
    """Print one line for each run of a folder, whatever sweep it is of. Returns 0 if every one is done."""
    parts = ("model", "task", "method", "profile")
    ordered = sorted(runs, key=lambda run: (*(run[0].name(part) for part in parts), run[0].seed))
    rows = [
        [*(record.name(part) for part in parts), str(record.seed), state, record.run_id] for record, state in ordered
    ]
    terminal.console().print(FittedTable([*parts, "seed", "state", "run"], rows, str(results), keys=3))
    total = Counter(state for _, state in runs)
    print(f"{len(runs)} runs: " + (", ".join(f"{count} {state}" for state, count in total.items()) or "none"))
    return 0 if all(state == "done" for _, state in runs) else 1


def _show(experiment: Experiment, runs: list[Progress], commands: list[str], *, one_line_each: bool) -> None:
    varied = [key for key, values in experiment.sweep.items() if len(values) > 1]
    if one_line_each:
        headings = [*varied, "state", "run"]
        rows = [[*(run.choices[key] for key in varied), run.state, run.run_id] for run in runs]
        keys = len(headings)
    else:
        states = list(dict.fromkeys(run.state for run in runs))
        places = [key for key in varied if key != "seed"]
        counts: dict[tuple[str, ...], Counter[str]] = {}
        for run in runs:
            counts.setdefault(tuple(run.choices[key] for key in places), Counter())[run.state] += 1
        headings = [*places, *states]
        rows = [[*place, *(str(count[state] or "") for state in states)] for place, count in counts.items()]
        keys = len(places)
    terminal.console().print(FittedTable(headings, rows, experiment.name, keys))
    total = Counter(run.state for run in runs)
    print(f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in total.items()))
    if commands:
        print("\nThe rest:\n" + "\n".join(f"    {shipped.typed(command)}" for command in commands))
