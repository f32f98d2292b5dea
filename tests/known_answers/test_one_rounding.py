"""In bfloat16 too a run has one set of scores: whether the process that evaluates has trained or not.

accelerate computes under autocast and makes every output float32. A process that found the training finished has
neither, and `run.py evaluate` has not, so the suite says itself how it computes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dual_lora.commands import main
from dual_lora.config.compose import compose
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve

CELL = ["model=tiny_llama", "model.dtype=bfloat16", "task=commonsense", "task.subsets=[boolq,piqa]"]
CELL += ["data.source=sample", "profile=quick", "profile.test_items=3", "protocol.decoding.max_new_tokens=4"]
TRAINED = ["profile.train_examples=32", "profile.max_steps=6", "profile.validation_examples=4", "recipe.global_batch=8"]


def _ran(*words: str) -> dict[str, Any]:
    (config,) = compose([*CELL, *TRAINED, "launch.device=cpu", *words])
    record = lifecycle.run(resolve(config))
    assert record["status"] == "finished", record.get("message")
    return record


@pytest.mark.parametrize("method", ["full", "dual_lora"])
def test_a_process_that_only_evaluates_finds_the_scores_of_the_one_that_trained(method: str, tmp_path: Path) -> None:
    words = (f"method={method}", f"results={tmp_path}")
    at_once = _ran(*words)
    name = at_once["identity"]["run_id"]
    shutil.rmtree(tmp_path / "runs" / name / "predictions")
    (tmp_path / "records" / f"{name}.json").unlink()
    afterwards = _ran(*words)
    assert afterwards["origin"]["predictions_sha256"] == at_once["origin"]["predictions_sha256"]
    assert afterwards["scores"] == at_once["scores"]


def test_a_saved_adapter_gets_the_scores_of_its_run(tmp_path: Path) -> None:
    record = _ran("method=lora", f"results={tmp_path}", "protocol.also_report=[]", "protocol.checkpoint=last")
    adapter = tmp_path / "runs" / record["identity"]["run_id"] / "adapter"
    out = tmp_path / "scores.json"
    words = [*CELL, "protocol.also_report=[]", "protocol.checkpoint=last", "launch.device=cpu", f"results={tmp_path}"]
    assert main(["evaluate", *words, f"adapter={adapter}", f"out={out}"]) == 0
    again = json.loads(out.read_text())["measurements"]
    first = [entry for entry in record["scores"]["measurements"] if entry["split"] == "test"]
    assert [entry["metrics"] for entry in again] == [entry["metrics"] for entry in first]
