"""The records of runs as a table reads them, and which of them belong to the repository."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dual_lora import records
from dual_lora.records.schema import Record, RecordError, parse


def read_all(paths: Iterable[Path]) -> tuple[list[Record], list[str]]:
    """Return the records in these files, in their order, and why each of the others is refused, by name."""
    paths = list(paths)
    found, refused = records.read_folder(paths)
    places = {path.stem: path for path in paths}
    typed = (replace(parse(values), path=str(places[values["identity"]["run_id"]])) for values in found)
    return list(typed), refused


def files(folder: Path) -> list[Path]:
    """Return the record files of a folder, by name."""
    return sorted(folder.glob("*.json"))


def committed(folder: Path) -> list[Path]:
    """Return the record files that belong to the repository: those git tracks, or all outside a repository.

    A record counts from `git add` on, so that a table and its records can go into one commit. Raises `RecordError` if
    the folder is in a repository that git does not read, such as another user's: nobody could say which are tracked.
    """
    if not any((parent / ".git").exists() for parent in (folder.resolve(), *folder.resolve().parents)):
        return files(folder)
    command = ["git", "ls-files", "-z", "--", "."]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise RecordError(f"{folder} is in a git repository, and git cannot be run ({error}): install it") from None
    if done.returncode:
        raise RecordError(
            f"{folder}: git does not say which records are committed: {done.stderr.strip().partition(chr(10))[0]}. For "
            f"another user's clone: git config --global --add safe.directory {folder.resolve().parents[1]}"
        )
    names = [name for name in done.stdout.split("\0") if name.endswith(".json") and "/" not in name]
    return sorted(path for path in (folder / name for name in names) if path.exists())
