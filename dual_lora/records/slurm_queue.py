"""Which runs SLURM has in its queue or at work: `runs/ID/slurm.json` names the job of a run."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from dual_lora.records.storage import read_json, write_json

_FILE = "slurm.json"


def keep(folder: Path, job: str) -> None:
    """Write which job does the run of a folder."""
    write_json(folder / _FILE, {"job": job})


def queued(folders: Iterable[Path]) -> dict[Path, str]:
    """Return those folders whose run's job is waiting or running, with the job. SLURM is asked once, for all."""
    jobs = {folder: job for folder in folders if (job := _job(folder)) is not None}
    if not jobs:
        return {}
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i", "--jobs", ",".join(jobs.values())],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    held = asked.stdout.split()  # jobs that are over are left out; if all are, squeue exits with an error
    return {folder: job for folder, job in jobs.items() if job in held}


def _job(folder: Path) -> str | None:
    job = read_json(folder / _FILE, lambda values: str(values["job"]))
    return job if job is not None and re.fullmatch(r"\d+(_\d+)?", job) else None
