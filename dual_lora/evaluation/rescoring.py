"""Scoring a finished run again from the predictions it kept: no model, no GPU.

For a machine without Java (METEOR), a scorer that was fixed, a new metric. The predictions are checked against the
hashes in the record, so the new scores are of the same run.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_lora import records, tasks
from dual_lora.config import ConfigError, RunConfig
from dual_lora.evaluation import archive
from dual_lora.evaluation.prediction_lines import in_order, readings, sha256
from dual_lora.records import per_item
from dual_lora.tasks import splits
from dual_lora.tasks.base import Example, Reading, Task


def rescore(known: Mapping[str, Any], config: RunConfig, kept: Path) -> dict[str, Any]:
    """Return the record with its test measurements computed again.

    Args:
        known: the record of a finished run of a language model.
        config: the run's own (`config.json` in its folder), with `task.metrics` and `data.dir` of this machine.
        kept: the run's folder `predictions/`, or its archive (`evaluation.archive`), which has replies alone:
            measurements of rankings stay as they are then.

    Raises:
        ConfigError: another run's config, data that has changed, predictions that are missing or not those of the
            record, metrics that the record would lose.
    """
    if known["status"] != "finished":
        raise ConfigError(f"the record's status is {known['status']}: only a finished run can be scored again")
    if all(entry["split"] != "test" for entry in known["scores"]["measurements"]):
        raise ConfigError("the run scored no test item (profile.test_items=0): there are no predictions to score")
    _check_of_predictions(known, config.task.metrics)
    task = tasks.load(config)
    _check_none_left_out(known, config.task.metrics)
    if task.head.kind != "causal_lm":
        raise ConfigError(f"task={task.name}: only generated and ranked answers can be scored again")
    if task.fingerprint() != known["identity"]["data"]["fingerprint"]:
        raise ConfigError(f"data.dir={config.data.dir} does not have the data that this run was scored on")
    items = splits.select(task, config).test
    archived = None if kept.is_dir() else archive.read(known, kept)
    again = [entry for entry in known["scores"]["measurements"] if _is_kept(entry, archived)]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in again:
        key = (entry["checkpoint"], entry["scoring"])
        if key not in found:
            readings = _readings(_values(known, kept, archived, *key), task, items, key[1])
            found[key] = [
                {"split": "test", "checkpoint": key[0], **dataclasses.asdict(score)}
                for score in task.score(readings, items, key[1])
            ]
    others = [entry for entry in known["scores"]["measurements"] if not _is_kept(entry, archived)]
    _check_nothing_lost(again, found)
    shown = known["scores"]["headline"]["checkpoint"]
    scored, rows = per_item.apart([entry for entries in found.values() for entry in entries], shown)
    measurements = scored + others
    origin = {**known["origin"], "rescored": _origin()}
    scores = {**known["scores"], "measurements": measurements, "headline": _headline(known, measurements)}
    rows = {**known["scores"].get("per_item", {}), **rows}
    scores |= {"per_item": rows} if rows else {}
    scores["notes"] = _notes(known["scores"]["notes"], task)
    return dict(json.loads(json.dumps({**known, "scores": scores, "origin": origin}, allow_nan=False)))


def _names(known: Mapping[str, Any], split: str) -> set[str]:
    return {name for entry in known["scores"]["measurements"] if entry["split"] == split for name in entry["metrics"]}


def _check_of_predictions(known: Mapping[str, Any], asked: Sequence[str]) -> None:
    given = _names(known, "test")
    of_model = [name for name in asked if name in _names(known, "validation") - given]
    if of_model:
        raise ConfigError(
            f"--metrics {' '.join(of_model)}: computed with the model while it was loaded, not from predictions; this "
            f"run's predictions gave {', '.join(sorted(given))}"
        )


def _check_none_left_out(known: Mapping[str, Any], asked: Sequence[str]) -> None:
    left_out = sorted(_names(known, "test") - set(asked))
    if asked and left_out:
        raise ConfigError(
            f"--metrics {' '.join(asked)} would drop {', '.join(left_out)} from the record; name these too: --metrics "
            f"{' '.join([*asked, *left_out])}; or leave --metrics out, for all of the task's"
        )


def _is_kept(entry: Mapping[str, Any], archived: Mapping[str, Any] | None) -> bool:
    """Whether a measurement is of test items and what it was made from is here."""
    name = per_item.predictions(entry["checkpoint"], "test", entry["scoring"])
    return entry["split"] == "test" and (archived is None or name in archived)


def _values(
    known: Mapping[str, Any], kept: Path, archived: Mapping[str, list[str]] | None, checkpoint: str, scoring: str
) -> list[Any]:
    """Return replies, or for a ranking log-likelihoods, in the items' order."""
    name = per_item.predictions(checkpoint, "test", scoring)
    if archived is not None:
        return archived[name]
    path = kept / f"{name}.jsonl"
    try:
        lines = in_order(path)
    except (OSError, *records.UNREADABLE) as error:
        raise ConfigError(f"{path} cannot be read ({error}); evaluate the run again instead") from None
    if sha256(lines) != known["origin"]["predictions_sha256"].get(name):
        raise ConfigError(f"{path} does not have the predictions that the record was made from")
    return [json.loads(line)["value"] for line in lines]


def _readings(values: list[Any], task: Task, items: list[Example], scoring: str) -> list[Reading]:
    if len(values) != len(items):
        raise ConfigError(f"{len(values)} predictions are kept, of {len(items)} items")
    return readings(task, values, items, scoring)


def _check_nothing_lost(again: list[dict[str, Any]], found: Mapping[tuple[str, str], list[dict[str, Any]]]) -> None:
    held = {name for entry in again for name in entry["metrics"]}
    made = {name for entries in found.values() for entry in entries for name in entry["metrics"]}
    if held - made:
        raise ConfigError(
            f"scoring again does not give {', '.join(sorted(held - made))}, which the record has; it stays as it is"
        )


def _headline(known: Mapping[str, Any], measurements: list[dict[str, Any]]) -> dict[str, Any]:
    old = known["scores"]["headline"]
    value = next(
        entry["metrics"].get(old["metric"])
        for entry in measurements
        if (entry["split"], entry["checkpoint"], entry["scoring"], entry["subset"])
        == ("test", old["checkpoint"], old["scoring"], old["subset"])
    )
    return {**old, "value": value}


def _notes(notes: list[str], task: Task) -> list[str]:
    """Return the run's notes with the task's own replaced by those of this scoring."""
    about_scoring = ("left out by task.metrics", "no Java:")
    kept = [note for note in notes if not note.startswith(about_scoring)]
    return [*kept, *(note for note in task.notes if note.startswith(about_scoring) and note not in kept)]


def _origin() -> dict[str, Any]:
    made = records.origin_of_this_process()
    return {**{key: made[key] for key in ("commit", "dirty", "versions")}, "when": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
