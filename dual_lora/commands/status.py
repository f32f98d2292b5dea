"""Show what is done, running, failed or missing of an experiment, and the commands that run the rest.

    python run.py status table_commonsense
    python run.py status table_glue --cells          # one line per cell
    python run.py status table_glue --missing        # only the commands, for a script

A cell is done when its record says finished; running while a process holds its run's lock; stopped when a run was begun
and no process holds it (the same command continues it).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dual_lora import shipped
from dual_lora.commands.parser import Parser
from dual_lora.report import selection
from dual_lora.report.definition import Experiment
from dual_lora.report.status import OPEN, Progress, progress
from dual_lora.report.workspace import Workspace


def options(parser: Parser) -> None:
    parser.add_argument("experiment", help="a name in experiments/, without .yaml")
    parser.add_argument("--cells", action="store_true", help="one line per cell")
    parser.add_argument("--missing", action="store_true", help="print only the commands that run what is not done")
    parser.add_argument("--home", type=Path, metavar="FOLDER", default=shipped.home(), help="what holds results/")


def run(options: argparse.Namespace) -> int:
    """Return 0 when every cell is done, 1 when some are not. Raises `ValueError` for a file that cannot be used."""
    space = Workspace(options.home)
    experiment = space.experiment(options.experiment)
    cells = progress(experiment, space.all_records(), space.root / "results" / "runs")
    commands = selection.commands(experiment, [cell.choices for cell in cells if cell.state in OPEN])
    failed = [cell.choices for cell in cells if cell.state not in (*OPEN, "done", "running")]
    commands += [f"{command} retry=true" for command in selection.commands(experiment, failed)]
    if options.missing:
        print("\n".join(commands))
    else:
        _show(experiment, cells, commands, every_cell=options.cells)
    return 0 if all(cell.state == "done" for cell in cells) else 1


def _show(experiment: Experiment, cells: list[Progress], commands: list[str], *, every_cell: bool) -> None:
    varied = [key for key, values in experiment.sweep.items() if len(values) > 1]
    if every_cell:
        table = Table(*varied, "state", "run", title=experiment.name, title_justify="left")
        for cell in cells:
            table.add_row(*(cell.choices[key] for key in varied), cell.state, cell.run_id)
    else:
        states = list(dict.fromkeys(cell.state for cell in cells))
        keys = [key for key in varied if key != "seed"]
        table = Table(*keys, *states, title=experiment.name, title_justify="left")
        counts: dict[tuple[str, ...], Counter[str]] = {}
        for cell in cells:
            counts.setdefault(tuple(cell.choices[key] for key in keys), Counter())[cell.state] += 1
        for place, count in counts.items():
            table.add_row(*place, *(str(count[state] or "") for state in states))
    Console().print(table)
    total = Counter(cell.state for cell in cells)
    print(f"{len(cells)} cells: " + ", ".join(f"{count} {state}" for state, count in total.items()))
    if commands:
        print("\nThe rest:\n" + "\n".join(f"    {command}" for command in commands))
