"""The record of a run: one JSON, also of a run that failed. The only writer; `evidence` reads.

`identity` is everything that can change a number, and its hash is the run id. `scores` holds only what the identity
determines. Times, memory and machines are in `cost` and `execution`, commit, versions and command in `origin`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dual_lora import shipped
from dual_lora.records import redaction
from dual_lora.records.evidence import checksum, lines, loaded, of_line, read
from dual_lora.records.schema import SCHEMA, RecordError, Status
from dual_lora.records.storage import write_json, write_text

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "datasets", "tokenizers", "numpy", "triton")


def record_path(results: str | Path, run_id: str) -> Path:
    """Where the record of a run is. Records under `results/records` are meant to be committed."""
    return Path(results) / "records" / f"{run_id}.json"


def run_folder(results: str | Path, run_id: str) -> Path:
    """Where a run keeps its checkpoints, predictions and log; never committed."""
    return Path(results) / "runs" / run_id


def weights_file(folder: Path, checkpoint: str) -> Path:
    """Where a run keeps the trained weights of a checkpoint (`last`, `best_dev`, `best_heldout`, `best_loss`)."""
    return folder / "last.safetensors" if checkpoint == "last" else folder / "selected" / f"{checkpoint}.safetensors"


def write(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write a record with its checksum, as `write_json` does, and return what was written."""
    written = {**record, "checksum": checksum(record)}
    write_json(path, written)
    return written


def pack(path: Path, run_ids: Iterable[str]) -> int:
    """Move the records of these runs from files of their own, next to `path` (NAME.jsonl), into lines of it, by run id.

    A line is the record as it is, checksum included; it replaces an older one of the run. Returns how many were moved.
    Raises `RecordError` for a damaged record or line: then nothing is moved.
    """
    held = {of_line(*line)["identity"]["run_id"]: line[0].decode() for line in lines(path)}
    own = {}
    for name in sorted(set(run_ids)):
        file = path.with_name(f"{name}.json")
        if file.exists() and read(file) is not None:
            own[name] = file
            held[name] = json.dumps(loaded(file), ensure_ascii=False)
    if not own:
        return 0
    text = "".join(f"{held[name]}\n" for name in sorted(held))
    write_text(path, text)
    if path.read_bytes() != text.encode():
        raise RecordError(f"{path} does not hold what was written to it; no record was moved")
    for file in own.values():
        file.unlink()
    return len(own)


def build(
    *,
    status: Status,
    identity: dict[str, Any],
    scores: dict[str, Any] | None = None,
    curves: dict[str, Any] | None = None,
    cost: dict[str, Any] | None = None,
    execution: dict[str, Any] | None = None,
    origin: dict[str, Any] | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    """Return a record with every section present."""
    record: dict[str, Any] = {"schema": SCHEMA, "status": status}
    if message:
        record["message"] = redaction.hide(message)
    record["identity"] = identity
    record["scores"] = dict(scores or {})
    if "notes" in record["scores"]:
        record["scores"]["notes"] = redaction.hide_all(record["scores"]["notes"])
    record["curves"] = curves or {}
    record["cost"] = cost or {}
    record["execution"] = execution or {}
    record["origin"] = redaction.hide_all({**origin_of_this_process(), **(origin or {})})
    # The same as a reader of the file gets: lists, not tuples.
    return dict(json.loads(json.dumps(record, allow_nan=False)))


def origin_of_this_process() -> dict[str, Any]:
    """Return commit, whether the tree differs from it, package versions and the command."""
    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    # results/ changes with every record and is not code.
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return {
        "commit": commit,
        "dirty": None if changed is None else bool(changed),
        "versions": versions,
        "command": os.environ.get("DUAL_LORA_COMMAND") or command_of_this_process(),
    }


def command_of_this_process() -> str:
    """Return the command that this process was started with, fit to be shared."""
    return redaction.shareable([*shipped.PROGRAM.split(), *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    if not shipped.IN_CHECKOUT:
        return None
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=shipped.checkout(), capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
