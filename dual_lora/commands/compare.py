"""Show two runs next to each other: the settings that differ, scores and costs.

python run.py compare RUN RUN                   # run ids, or as many of their first digits as tell them apart
python run.py compare RUN RUN results=FOLDER    # of another results folder
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dual_lora import shipped
from dual_lora.commands.parser import Parser
from dual_lora.report import records, side_by_side, terminal


def options(parser: Parser) -> None:
    parser.add_argument("runs", nargs=2, metavar="RUN", help="a run id, or its first digits")
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=shipped.results())


def run(options: argparse.Namespace) -> int:
    """Return 0. Raises `ValueError` for a run that no record, or more than one, has."""
    held, refused = records.read_all(options.results / "records")
    terminal.name_refused(refused)
    one, other = (side_by_side.find(name, held) for name in options.runs)
    terminal.console().print(*side_by_side.tables(one, other), sep="\n")
    return 0
