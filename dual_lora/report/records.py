"""The records of runs as a table reads them, and which of them belong to the repository."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dual_lora.records import evidence
from dual_lora.records.schema import Record, RecordError


@dataclass(frozen=True)
class Held:
    """The records in some files, and why each of the others is refused."""

    files: Mapping[Path, list[Record]]
    refused: list[str]

    def records(self, files: Iterable[Path] | None = None) -> list[Record]:
        """Return the records in these of the files (None: in all), one for each run, by run id."""
        chosen = self.files if files is None else {path: self.files[path] for path in files if path in self.files}
        return evidence.by_run(chosen, lambda record: record.run_id)


def read_each(paths: Iterable[Path]) -> Held:
    """Return what these files hold. What several records say alike is one object in memory."""
    held: dict[str, Any] = {}

    def shared(record: Record) -> Record:
        for part in (record.identity, record.execution, record.origin):
            for name, value in part.items():
                part[name] = held.setdefault(repr(value), value)
        return record

    return Held(*evidence.read_each(paths, shared))


def read_all(folder: Path) -> tuple[list[Record], list[str]]:
    """Return the records of a folder, one for each run, by run id, and why each of the others is refused, by name."""
    held = read_each(evidence.files(folder))
    return held.records(), held.refused


def committed(folder: Path) -> list[Path]:
    """Return the record files that belong to the repository: those git tracks, or all outside a repository.

    A record counts from `git add` on, so that a table and its records can go into one commit. Raises `RecordError` if
    the folder is in a repository that git does not read, such as another user's: nobody could say which are tracked.
    """
    tracked = _tracked(folder)
    return [path for path in evidence.files(folder) if tracked is None or path.name in tracked]


def archived(folder: Path, *, committed: bool) -> frozenset[str]:
    """Return the ids of runs whose replies are in a folder; with `committed` those that git tracks, as of records."""
    tracked = _tracked(folder) if committed and folder.is_dir() else None
    files = (path.name for path in folder.glob("*.jsonl.gz"))
    return frozenset(name.partition(".")[0] for name in files if tracked is None or name in tracked)


def _tracked(folder: Path) -> frozenset[str] | None:
    """Return the names of the files in a folder that git tracks, None outside a repository."""
    if not any((parent / ".git").exists() for parent in (folder.resolve(), *folder.resolve().parents)):
        return None
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
    return frozenset(name for name in done.stdout.split("\0") if "/" not in name)
