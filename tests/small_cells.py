"""Cells that take seconds: random models, the shipped sample data, a few steps. Shared by tests of whole runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from dual_lora.config import RunConfig
from dual_lora.config.compose import compose
from tests import ROOT

SIZES = ["profile=quick", "profile.train_examples=24", "profile.max_steps=6", "profile.validation_examples=4"]
COMMON = [*SIZES, "data.source=sample", "recipe.global_batch=8"]
COMMON += ["launch.device=cpu", "launch.per_device_batch=8", "launch.save_every_steps=2"]
WRITING = ["model=tiny_llama", "task=commonsense", "profile.test_items=1", "protocol.decoding.max_new_tokens=3"]
DESCRIBING = ["model=tiny_gpt2", "task=e2e", "task.metrics=[BLEU]", "profile.test_items=1"]
CLASSIFYING = ["model=tiny_roberta", "task=glue/rte", "profile.test_items=6"]


def arguments(results: Path, *more: str, kind: list[str] = WRITING) -> list[str]:
    """Return the command line of a small cell."""
    return [*kind, *COMMON, f"results={results}", *more]


def config(results: Path, *more: str, kind: list[str] = WRITING) -> RunConfig:
    """Compose a small cell in this process, once: composing takes as long as training does."""
    return dataclasses.replace(_composed((*kind, *COMMON, *more)), results=str(results))


@functools.cache
def _composed(words: tuple[str, ...]) -> RunConfig:
    [cell] = compose([*words])
    return cell


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    """Start `python run.py` with one thread; output and errors come through one pipe."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def only_record(results: Path) -> dict[str, Any]:
    [path] = (results / "records").glob("*.json")
    return json.loads(path.read_text())


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's identity determines: scores, curves and predictions; no times, memory or machines."""
    return {
        "status": record["status"],
        "run_id": record["identity"]["run_id"],
        "scores": record["scores"],
        "curves": record["curves"],
        "predictions": record["origin"].get("predictions_sha256"),
        "rendered": record["origin"].get("rendered_sha256"),
        "steps": record["cost"].get("steps"),
    }
