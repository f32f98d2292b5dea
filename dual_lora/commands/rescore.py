"""Score finished runs again from the predictions they kept: no model is loaded, no GPU is needed.

    python run.py rescore RUN_ID...                  # all of the task's metrics, e.g. METEOR after installing Java
    python run.py rescore --all                      # every finished run whose predictions are here
    python run.py rescore RUN_ID --data-dir FOLDER   # where the run's local data is on this machine
    python run.py rescore RUN_ID --metrics BLEU NIST # those the record has, and more of the task's: none is dropped
    python run.py rescore RUN_ID --results FOLDER    # instead of results/

The predictions are those in the run's folder, or what it wrote as results/predictions/RUN_ID.jsonl.gz has it, which is
committed with the record: with the data, anyone can compute its scores again. The new record says when and by which
version it was scored again; everything else in it stays.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dual_lora import records, shipped
from dual_lora.commands.parser import Parser
from dual_lora.config import ConfigError, RunConfig
from dual_lora.records.lock import RunLock

METRICS = "names of the task's (as in task.metrics), all that the record has among them; default: all of the task's"


def options(parser: Parser) -> None:
    parser.add_argument("run_ids", nargs="*", metavar="RUN_ID")
    parser.add_argument("--all", action="store_true", help="every finished run whose predictions are here")
    parser.add_argument("--data-dir", metavar="FOLDER", help="of local data, if it is not the one used in the run")
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", default=[], help=METRICS)
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=shipped.results())


def run(options: argparse.Namespace) -> int:
    """Return 0, or 1 if a run could not be scored again."""
    if bool(options.run_ids) == options.all:
        raise ConfigError("name RUN_IDs, or use --all")
    ids = options.run_ids or _here(options.results)
    failed = 0
    for number, run_id in enumerate(ids, 1):
        try:
            shown = _one(run_id, options)
        except (ValueError, RuntimeError, OSError) as error:
            print(f"[{number}/{len(ids)}] {run_id}: error: {error}", file=sys.stderr)
            failed += 1
        else:
            print(f"[{number}/{len(ids)}] {run_id}: {shown}", flush=True)
    return 1 if failed else 0


def _one(run_id: str, options: argparse.Namespace) -> str:
    from dual_lora.evaluation import archive
    from dual_lora.evaluation.rescoring import rescore

    path, folder = records.record_path(options.results, run_id), records.run_folder(options.results, run_id)
    kept = archive.path(options.results, run_id)
    in_folder = (folder / "config.json").is_file()
    if not in_folder and not kept.is_file():  # before the lock, which would make the folder
        raise ValueError(f"{folder} holds no run; runs here: {', '.join(_here(options.results)) or 'none'}")
    with RunLock(folder) if in_folder else nullcontext():
        known = records.read(path)
        if known is None:
            raise ValueError(f"{path} does not exist: the run has not ended")
        made = rescore(known, _config(known, folder, options), folder / "predictions" if in_folder else kept)
        written = records.write(path, made)
        if in_folder:
            archive.write(written, archive.of_folder(written, folder / "predictions"), kept)
    return _changes(known, made)


def _changes(known: dict[str, Any], made: dict[str, Any]) -> str:
    """Say what the headline was and is, and which metrics the record did not have."""
    before, after = known["scores"]["headline"], made["scores"]["headline"]
    then, now = ("undefined" if one["value"] is None else f"{one['value']:.6g}" for one in (before, after))
    told = f"{after['metric']} {now}, {'as before' if after['value'] == before['value'] else f'before {then}'}"
    had, has = ({m for e in one["scores"]["measurements"] for m in e["metrics"]} for one in (known, made))
    return told + (f"; new: {', '.join(sorted(has - had))}" if has - had else "")


def _config(known: dict[str, Any], folder: Path, options: argparse.Namespace) -> RunConfig:
    """Return the settings to score with: the run's own, or where its folder is not here those that the record has."""
    from dual_lora.runs.identity import rebuilt
    from dual_lora.runs.lifecycle import load_config

    given = options.data_dir or os.environ.get("DUAL_LORA_DATA")
    file = folder / "config.json"
    config = load_config(file) if file.is_file() else rebuilt(known["identity"], given)
    task = dataclasses.replace(config.task, metrics=tuple(options.metrics))
    data = dataclasses.replace(config.data, dir=options.data_dir or config.data.dir)
    return dataclasses.replace(config, task=task, data=data)


def _here(results: Path) -> list[str]:
    """Return the runs whose record is finished and whose predictions are here."""
    from dual_lora.evaluation import archive
    from dual_lora.report.terminal import name_refused

    found, refused = records.read_folder(results / "records")
    name_refused(refused)
    finished = [known["identity"]["run_id"] for known in found if known["status"] == "finished"]
    return [
        name
        for name in finished
        if (results / "runs" / name / "predictions").is_dir() or archive.path(results, name).is_file()
    ]
