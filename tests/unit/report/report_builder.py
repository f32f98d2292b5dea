"""Records as a run would write them, for the tests of the report."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dual_lora.records
from dual_lora.records import SCHEMA
from dual_lora.report.layout import Line, TableView
from tests.unit.records.test_record_names import name_of

BEGUN = datetime(2026, 3, 1, tzinfo=UTC)  # after the endpoint of EXPERIMENT was named
_SLOTS = itertools.count()

EXPERIMENT = """
hydra:
  sweeper:
    params:
      model: smollm2
      task: commonsense
      method: none,lora,dual_lora
      protocol: strict
      profile: study
      seed: 0,1,2,3,4,5
table:
  title: A table
  block: A block
  reference: lora
  endpoint: {column: BoolQ, named: 2026-01-31T12:00+00:00, margin: 0.5}
  column_defaults: {metric: accuracy}
  columns:
    - {label: BoolQ, subset: boolq, published: BoolQ}
    - {label: PIQA, subset: piqa}
    - {label: Avg., average: true}
  published_models: {smollm2: Small}
  published:
    - {file: papers, table: t, methods: {lora: "LoRA (r=32)"}}
"""
PROTOCOL = {"name": "strict", "task": "commonsense", "loss_on": "answer", "hash": "aaaa"}


def record(
    method: str = "lora",
    seed: int = 0,
    scores: dict[str, float | None] | None = None,
    *,
    metric: str = "accuracy",
    model: str = "smollm2",
    task: str = "commonsense",
    status: str = "finished",
    items: int = 1000,
    at_chance: bool = False,
    protocol: dict[str, Any] | None = None,
    profile: str = "study",
    source: str = "local",
    recipe: str | None = None,
    learning_rate: float = 2e-4,
    guessed: tuple[str, ...] = (),
    init_from: str = "none",
    **identity: Any,
) -> dict[str, Any]:
    """Return a record with one measurement per subset of `scores` (default: boolq and piqa)."""
    scores = {"boolq": 0.6, "piqa": 0.7} if scores is None else scores
    recipe = f"{model}/{task}/{method}" if recipe is None else recipe
    checkpoint = "base" if method == "none" else "last"
    trains = {"none": "nothing", "full": "everything"}.get(method, "adapter")
    measurements = [
        {
            "subset": subset,
            "split": "test",
            "checkpoint": checkpoint,
            "scoring": "generate",
            "items": items,
            "unreadable": 0,
            "counts": {},
            "chance": 0.5,
            "at_chance": at_chance,
            "metrics": {metric: value},
        }
        for subset, value in scores.items()
    ]
    first = next(iter(scores))
    headline = {
        "metric": metric, "value": scores[first], "subset": first, "scoring": "generate", "checkpoint": checkpoint,
    }  # fmt: skip
    finished = status == "finished"
    begun = BEGUN + next(_SLOTS) * timedelta(minutes=5)  # one after the other
    made = {
        "schema": SCHEMA,
        "status": status,
        "message": None if finished else "it did not work",
        "identity": {
            "model": {"name": model, "label": model.upper()},
            "task": {"name": task, "label": task, "target": "text"},
            "method": {"name": method, "label": method.upper(), "settings": {"r": 32}, "trains": trains},
            "recipe": {"name": recipe, "learning_rate": learning_rate},
            "protocol": PROTOCOL if protocol is None else protocol,
            "profile": {"name": profile},
            "data": {"source": source, "fingerprint": {"test": "f00"}},
            "dtype": "bfloat16",
            "seed": seed,
            "init_from": init_from,
            **identity,
        },
        "scores": {"headline": headline, "measurements": measurements, "notes": []} if finished else {},
        "curves": {"train_loss": [[1, 3.0], [2, 2.5]]},
        "cost": {
            "train_seconds": 120.0,
            "eval_seconds": 30.0,
            "peak_memory_bytes": [2**31, 2**30],
            "trainable_parameters": 1_000_000,
            "trainable_parameters_without_head": 900_000,
        },
        "execution": {"device": "NVIDIA H100"},
        "origin": {
            "commit": "c0ffee",
            "started": begun.isoformat(),
            "finished": (begun + timedelta(minutes=3)).isoformat(),
            "dirty": False,
            "recipe_sources": dict.fromkeys(guessed, "guess: no paper says"),
            "recipe_trials": 4,
        },
    }
    made["identity"]["run_id"] = name_of(made["identity"])
    return made


def write(folder: Path, *records: dict[str, Any]) -> Path:
    """Write records the way a run does, one file each, and return the folder. What a test changed renames them."""
    for values in records:
        values["identity"]["run_id"] = name_of(values["identity"])
        dual_lora.records.write(folder / f"{values['identity']['run_id']}.json", values)
    return folder


def ours(table: TableView, method: str) -> Line:
    """Return our row of a method."""
    return next(line for line in table.blocks[0].lines if line.source is None and line.method == method)


def seeds_of(method: str, values: Sequence[float], **more: Any) -> list[dict[str, Any]]:
    """Return a method's records with these scores on BoolQ, seeds from 0."""
    return [record(method, seed, {"boolq": value, "piqa": 0.7}, **more) for seed, value in enumerate(values)]
