"""A model trains and scores the same whatever its class is called.

transformers' Trainer, its losses and PEFT look up names of classes in places. Each cell is run twice: as it is, and
with the model's class renamed to one that no table has. Whatever depends on a name then differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from dual_lora import models
from dual_lora.config.compose import compose
from dual_lora.models.loading import LoadedModel
from dual_lora.runs import lifecycle
from dual_lora.runs import work as cells
from dual_lora.runs.resolve import resolve

SMALL = ["data.source=sample", "profile=quick", "profile.train_examples=32", "profile.max_steps=3"]
SMALL += ["profile.test_items=2", "profile.validation_examples=4", "recipe.global_batch=8", "launch.device=cpu"]
WRITING = ["protocol.decoding.max_new_tokens=6", "protocol.decoding.beams=2", "recipe.label_smoothing=0.1"]
CELLS = {
    "split GPT-2": ["model=tiny_gpt2", "task=e2e", "method=dual_lora", "task.metrics=[BLEU]", *WRITING],
    "GPT-2, trained whole": ["model=tiny_gpt2", "task=e2e", "method=full", "task.metrics=[BLEU]", *WRITING],
    "LLaMA": ["model=tiny_llama", "task=commonsense", "task.subsets=[boolq]", "method=lora", *WRITING],
    "RoBERTa": ["model=tiny_roberta", "task=glue/rte", "method=dual_lora"],
    "DeBERTa": ["model=tiny_deberta", "task=glue/stsb", "method=lora"],
}


def _ran(results: Path, *arguments: str) -> dict[str, Any]:
    (config,) = compose([*SMALL, f"results={results}", *arguments])
    record = lifecycle.run(resolve(config))
    assert record["status"] == "finished", record.get("message")
    return {
        "scores": record["scores"],
        "curves": record["curves"],
        "predictions": record["origin"]["predictions_sha256"],
        "parameters": record["cost"]["trainable_parameters"],
        "parameters without head": record["cost"]["trainable_parameters_without_head"],
        "operations": record["cost"]["train_flops"],
    }


@pytest.mark.parametrize("name", CELLS)
def test_nothing_depends_on_the_name_of_the_class(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _ran(tmp_path / "stock", *CELLS[name])
    load = models.load

    def renamed(*args: Any, **kwargs: Any) -> LoadedModel:
        loaded = load(*args, **kwargs)
        cls = type(loaded.model)
        loaded.model.__class__ = type("Unheard", (cls,), {"__module__": "elsewhere"})
        loaded.model.loss_type = None  # what transformers makes of the name when a model is built
        return loaded

    monkeypatch.setattr(cells.models, "load", renamed)
    assert _ran(tmp_path / "renamed", *CELLS[name]) == expected


@pytest.mark.parametrize("name", ["split GPT-2", "LLaMA", "RoBERTa", "DeBERTa"])
def test_checkpointing_computes_each_block_again_and_changes_no_number(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"forward": 0}
    load = models.load

    def counted(*args: Any, **kwargs: Any) -> LoadedModel:
        loaded = load(*args, **kwargs)
        block = next(part for part in loaded.model.modules() if isinstance(part, GradientCheckpointingLayer))
        leaves = [part for part in block.modules() if not list(part.children()) and list(part.parameters())]
        norm = next(part for part in leaves if not isinstance(part, (torch.nn.Linear, Conv1D)))

        def count(module: torch.nn.Module, *_: Any) -> None:
            calls["forward"] += loaded.model.training

        norm.register_forward_pre_hook(count)
        return loaded

    monkeypatch.setattr(cells.models, "load", counted)
    expected = _ran(tmp_path / "kept", *CELLS[name])
    once, calls["forward"] = calls["forward"], 0
    assert once > 0
    found = _ran(tmp_path / "again", *CELLS[name], "launch.gradient_checkpointing=true")
    assert calls["forward"] == 2 * once
    assert found == expected
