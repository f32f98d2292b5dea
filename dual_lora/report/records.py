"""Reading the records of runs: one JSON file per run, written by `dual_lora.records`.

A record is evidence, so nothing is repaired silently: a file that is damaged, or that a newer version of the suite
wrote, is refused by name.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dual_lora import records
from dual_lora.records.schema import Record, RecordError, parse


def read(path: Path) -> Record:
    """Return the record in a file. Raises `RecordError` naming a file that is missing or cannot be used."""
    values = records.read(path)
    if values is None:
        raise RecordError(f"{path}: no such record")
    return replace(parse(values, str(path)), path=str(path))


def read_all(folder: Path, *, only: Iterable[Path] | None = None) -> list[Record]:
    """Return the records of a folder in the order of their file names, or those of `only`.

    Raises `RecordError` for a damaged one and for two files that hold the same run.
    """
    paths = sorted(folder.glob("*.json")) if only is None else sorted(only)
    found = [read(path) for path in paths]
    seen: dict[str, str] = {}
    for record in found:
        if record.run_id in seen:
            raise RecordError(f"{record.path} and {seen[record.run_id]} hold the same run {record.run_id}: delete one")
        seen[record.run_id] = record.path
    return found


def committed(folder: Path) -> list[Path]:
    """Return the record files that belong to the repository: those git tracks, or all where there is no git.

    A record counts from `git add` on, so that a table and its records can go into one commit.
    """
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--", "."], cwd=folder, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return sorted(folder.glob("*.json"))
    paths = [folder / name for name in listed.split("\0") if name.endswith(".json") and "/" not in name]
    return sorted(path for path in paths if path.exists())
