"""Free the disk of what finished runs no longer need: optimizer checkpoints, and weights that no record reports.

    python run.py clean                       # says what it would remove, and how much that is
    python run.py clean --remove              # removes it
    python run.py clean --remove --weights    # all trained weights too: warm starts, export and analyze need them

A run removes its own optimizer checkpoints when it finishes; this is for folders of older versions and for weights.
Runs that are not finished, or that a process works on, are left alone. Records, predictions and logs always stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dual_lora import records, shipped
from dual_lora.commands.parser import Parser
from dual_lora.records.lock import RunIsBusy, RunLock

_MIB = 2**20


def options(parser: Parser) -> None:
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=shipped.results())
    parser.add_argument("--remove", action="store_true", help="remove; without it nothing is changed")
    parser.add_argument("--weights", action="store_true", help="all trained weights too")


def run(options: argparse.Namespace) -> int:
    """Return 0. Raises `ValueError` for a folder without runs."""
    from dual_lora.runs import leftovers

    folders = sorted(path for path in (options.results / "runs").glob("*") if path.is_dir())
    if not folders:
        raise ValueError(f"results={options.results}: no runs in {options.results / 'runs'}")
    total = 0
    for folder in folders:
        known = _record(options.results, folder.name)
        wanted = leftovers.not_needed(folder, known, weights=options.weights) if known else []
        taken = sum(map(leftovers.size, wanted))
        if not wanted:
            continue
        if options.remove:
            try:
                with RunLock(folder):
                    taken = leftovers.free(folder, known or {}, weights=options.weights)
            except RunIsBusy as error:
                print(f"{folder.name}: left alone: {error}", file=sys.stderr)
                continue
        total += taken
        print(f"{folder.name}: {taken / _MIB:.1f} MiB: {', '.join(path.name for path in wanted)}")
    done = "freed" if options.remove else "could be freed (give --remove)"
    print(f"{f'{total / _MIB:.1f} MiB {done}' if total else 'nothing to free'} in {len(folders)} runs")
    return 0


def _record(results: Path, name: str) -> dict[str, object] | None:
    try:
        return records.read(records.record_path(results, name))
    except ValueError as error:
        print(f"refused: {error}", file=sys.stderr)
        return None
