"""Show which runs of an experiment are done, running, failed or missing, and the commands that run the rest.

    python run.py status table_commonsense
    python run.py status table_glue --runs           # one line per run
    python run.py status table_glue --missing        # only the commands, for a script

A run is done if its record says finished, running while a process holds its lock, and stopped if it was begun and no
process holds its lock (the same command continues it).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from dual_lora import shipped
from dual_lora.commands.parser import Parser
from dual_lora.report import selection, terminal
from dual_lora.report.definition import Experiment
from dual_lora.report.progress import OPEN, Progress, progress
from dual_lora.report.terminal import FittedTable
from dual_lora.report.workspace import Workspace


def options(parser: Parser) -> None:
    parser.add_argument("experiment", help="a name in experiments/, without .yaml")
    parser.add_argument("--runs", action="store_true", help="one line per run")
    parser.add_argument("--missing", action="store_true", help="print only the commands that run what is not done")
    parser.add_argument("--home", type=Path, metavar="FOLDER", default=shipped.home(), help="what holds results/")


def run(options: argparse.Namespace) -> int:
    """Return 0 if every run is done, 1 when some are not. Raises `ValueError` for a file that cannot be used."""
    space = Workspace(options.home)
    experiment = space.experiment(options.experiment)
    for text in space.refused(committed=False):
        print(f"refused: {text}", file=sys.stderr)
    runs = progress(experiment, space.all_records(), space.root / "results" / "runs")
    commands = selection.commands(experiment, [run.choices for run in runs if run.state in OPEN])
    failed = [run.choices for run in runs if run.state not in (*OPEN, "done", "running")]
    commands += [f"{command} retry=true" for command in selection.commands(experiment, failed)]
    if options.missing:
        print("\n".join(commands))
    else:
        _show(experiment, runs, commands, every_run=options.runs)
    return 0 if all(run.state == "done" for run in runs) else 1


def _show(experiment: Experiment, runs: list[Progress], commands: list[str], *, every_run: bool) -> None:
    varied = [key for key, values in experiment.sweep.items() if len(values) > 1]
    if every_run:
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
        print("\nThe rest:\n" + "\n".join(f"    {command}" for command in commands))
