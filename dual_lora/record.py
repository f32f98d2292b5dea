"""The record of a run: one JSON file, also of a run that failed. The only writer; `dual_lora.report` reads.

`identity` is everything that can change a number, and its hash is the run id. `scores` holds only what the identity
determines. Times, memory and machines are in `cost` and `execution`, where from and how in `origin`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from dual_lora import secrets

SCHEMA = 1
Status = Literal["finished", "diverged", "out_of_memory", "timed_out", "interrupted", "failed"]
ROOT = Path(__file__).resolve().parent.parent
_WIDTH, _ROW = 120, 400  # of a line of a record, and of one that is a row of many (a measurement), if it can be kept
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "datasets", "tokenizers", "numpy", "triton")


def digest(values: Any, length: int = 64) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def dumps(values: Any) -> str:
    """Return JSON with an entry a line; curves, measurements and whatever fits take one: to be read, and compared.

    Raises `ValueError` for a number that is not finite.
    """
    plain = json.loads(json.dumps(values, allow_nan=False))  # keys are strings now, tuples lists
    return _laid_out(plain, margin="")


def _laid_out(value: Any, margin: str, width: int = _WIDTH) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if len(margin) + len(line) <= width or not isinstance(value, dict | list) or _is_curve(value):
        return line
    inner = margin + " "
    if isinstance(value, dict):
        entries = [f"{json.dumps(key, ensure_ascii=False)}: {_laid_out(entry, inner)}" for key, entry in value.items()]
        return f"{{\n{inner}" + f",\n{inner}".join(entries) + f"\n{margin}}}"
    return f"[\n{inner}" + f",\n{inner}".join(_laid_out(entry, inner, _ROW) for entry in value) + f"\n{margin}]"


def _is_curve(value: Any) -> bool:
    """Whether a value is numbers alone, or points: [[step, value], ...]."""
    points = [entry if isinstance(entry, list) else [entry] for entry in value] if isinstance(value, list) else []
    return bool(points) and all(isinstance(number, int | float) for point in points for number in point)


def write_json(path: Path, values: Any) -> None:
    """Write atomically: a reader, or a crash at any moment, sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def record_path(results: str | Path, run_id: str) -> Path:
    """Where the record of a run lies. Records under `results/records` are meant to be committed."""
    return Path(results) / "records" / f"{run_id}.json"


def run_folder(results: str | Path, run_id: str) -> Path:
    """Where a run keeps its checkpoints, predictions and log; never committed."""
    return Path(results) / "runs" / run_id


def weights_file(folder: Path, checkpoint: str) -> Path:
    """Where a run keeps the trained weights of a checkpoint (`last`, `best_dev`, `best_heldout`, `best_loss`)."""
    return folder / "last.safetensors" if checkpoint == "last" else folder / "selected" / f"{checkpoint}.safetensors"


def read(path: Path) -> dict[str, Any] | None:
    """Return a record, or None if there is none. Raises `ValueError` naming a damaged file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); move it away and run the same command again") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{path} has record schema {found!r}; this version writes {SCHEMA}")
    return record


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
        record["message"] = secrets.hide(message)
    record["identity"] = identity
    record["scores"] = scores or {}
    record["curves"] = curves or {}
    record["cost"] = cost or {}
    record["execution"] = execution or {}
    record["origin"] = {**origin_of_this_process(), **(origin or {})}
    # What is returned is what a reader of the file gets: lists, not tuples.
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
        "command": secrets.shareable(os.environ.get("DUAL_LORA_COMMAND") or " ".join(["python run.py", *sys.argv[1:]])),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
