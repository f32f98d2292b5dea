"""Move the records of whole experiments into one file each, a line a run: results/records/EXPERIMENT.jsonl.

    python run.py pack study_glue_rates study_glue      # what these experiments hold so far; the rest stays where it is
    python run.py pack study_glue records=FOLDER        # in another folder of records

For sweeps of hundreds of small runs. Nothing in a record changes, and every command reads both kinds of file. A run
that is done or scored again later has a file of its own again, which holds until the next `pack`.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from dual_lora import shipped
from dual_lora.commands.parser import Parser
from dual_lora.records import pack
from dual_lora.report import records, selection, terminal
from dual_lora.report.workspace import Workspace


def options(parser: Parser) -> None:
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help="names in experiments/, without .yaml")
    parser.add_argument("--records", type=Path, metavar="FOLDER", help="default: HOME/results/records")
    parser.add_argument("--home", type=Path, metavar="FOLDER", default=shipped.home(), help="what holds results/")


def run(options: argparse.Namespace) -> int:
    """Return 0, or 2 if a record of the folder is refused. Raises `ValueError` for a file that cannot be used."""
    space = Workspace(options.home)
    folder = options.records or space.records
    experiments = [space.experiment(name) for name in options.experiments]
    held, refused = records.read_all(folder)
    code = terminal.name_refused(refused)
    for experiment in (selection.with_extension(one, held) for one in experiments):
        path = folder / f"{experiment.name}.jsonl"
        moved = pack(path, [record.run_id for record in held if selection.in_sweep(record, experiment)])
        print(f"{path}: {moved} records moved into it")
    print(f"to commit that: git -C {shlex.quote(str(folder))} add -A .")
    return code
