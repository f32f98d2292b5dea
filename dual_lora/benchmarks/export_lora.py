"""Measure what `export-lora` keeps of trained Dual LoRA adapters: by rank, with and without texts to calibrate on.

    python run.py bench export-lora results/runs/RUN_ID ...     # results/benchmarks/export_lora.json

A run's folder names its base, data and score. A language model is measured by its loss per answer token on the run's
validation examples, a classifier by its task's scores on the run's test items; both as the run itself was. Next to the
exports are the adapter itself and the base (w = 0: with the head that was trained). The texts are eight of the training
set, evenly spread over it. Runs that are not given keep their entries in the file.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from dual_lora import methods, models, tasks
from dual_lora.benchmarks import timing
from dual_lora.config import ConfigError, RunConfig
from dual_lora.config.compose import compose_one
from dual_lora.evaluation import build_pipeline
from dual_lora.evaluation.pipeline import Pipeline
from dual_lora.methods import saved
from dual_lora.records import write_json
from dual_lora.tasks import splits
from dual_lora.tasks.splits import Items
from dual_lora.tuner import set_delta_warmup
from dual_lora.tuner.approximation import layer_inputs, write_as_lora

RANKS = (64, 32, 16, 8, 4)
TEXTS = 8
SMOKE = (["model=tiny_llama", "task=e2e"], ["model=tiny_roberta", "task=glue/rte"])


def measure(folder: Path, scratch: Path, ranks: Sequence[int] = RANKS) -> dict[str, Any]:
    """Return the scores of base, adapter and exports of the run in `folder`; `ranks` are in falling order.

    Raises:
        ConfigError: there is no such run, or it trained no adapter.
    """
    settings, adapter = folder / "config.json", folder / "adapter"
    if not (settings.is_file() and adapter.is_dir()):
        raise ConfigError(
            f"{folder} is not the folder of a finished run that trained an adapter (config.json, adapter)"
        )
    config = RunConfig.from_dict(json.loads(settings.read_text(encoding="utf-8")))
    device = "cuda" if torch.cuda.is_available() and config.launch.device != "cpu" else "cpu"
    task, dtype = tasks.load(config), models.resolve_dtype(config.model, device)
    items = _measured(splits.select(task, config), task.head.kind)
    loaded = models.load(config.model, task.head, dtype=dtype, seed=config.seed, device=device)
    scores: dict[str, dict[str, float]] = {}

    def pipeline(name: str) -> Pipeline:
        return build_pipeline(
            task, loaded.tokenizer, config, scratch / "scored" / name, dtype
        )  # it keeps what it scored

    def score(name: str, scored: nn.Module) -> None:
        [measured] = pipeline(name).measure(scored.eval(), items, None)
        scores[name] = dict(measured["metrics"])

    model = saved.with_adapter(loaded.model, adapter)
    score("Dual LoRA", model)
    set_delta_warmup(model, 0.0)
    score("base", model)
    set_delta_warmup(model, 1.0)
    inputs = layer_inputs(model, _texts(pipeline("texts"), items, device))
    for name, given in (("without texts", None), ("with texts", inputs)):
        write_as_lora(model, scratch / name, ranks[0], given)
    base = model.unload()
    for name in ("without texts", "with texts"):
        exported = PeftModel.from_pretrained(base, scratch / name)
        for rank in ranks:
            _keep_directions(exported, rank)
            score(f"rank {rank}, {name}", exported)
        base = exported.unload()
    return {
        "run": folder.name,
        "model": config.model.label,
        "task": config.task.label,
        "ranks": [config.method.settings[name] for name in ("r_magnitude", "r_direction")],
        "items": len(items.test or items.validation),
        "texts": TEXTS,
        "dtype": dtype,
        "command": timing.command(),
        "environment": timing.environment(device, ("transformers", "peft")),
        "scores": scores,
    }


def _measured(items: Items, kind: str) -> Items:
    """A language model's text would take minutes for each rank, and says less than its loss."""
    return replace(items, test=[]) if kind == "causal_lm" else replace(items, held_out=[])


def _texts(work: Pipeline, items: Items, device: str) -> Sequence[dict[str, torch.Tensor]]:
    rows = work.rows(items.train[:: max(1, len(items.train) // TEXTS)][:TEXTS], "calibration")
    given = ("input_ids", "attention_mask", "token_type_ids")
    return [{name: torch.tensor([row[name]], device=device) for name in given if name in row} for row in rows]


@torch.no_grad()
def _keep_directions(model: nn.Module, rank: int) -> None:
    """Make a LoRA of `write_as_lora` the one of a lower rank: its directions are in the order of what they carry."""
    for name, factor in model.named_parameters():
        if ".lora_A." in name:
            factor[rank:] = 0


def run(options: argparse.Namespace) -> None:
    """Measure each run and write its entry as it is done."""
    results = timing.read(options.output, "export_lora")
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs
        if options.smoke:
            runs = [write_smoke_run(Path(scratch) / f"smoke{number}", words) for number, words in enumerate(SMOKE)]
        if not runs:
            raise ConfigError("give the folders of finished runs of Dual LoRA, results/runs/RUN_ID, or --smoke")
        for number, folder in enumerate(runs):
            found = measure(folder, Path(scratch) / str(number))
            for name, scores in found["scores"].items():
                print(found["model"], found["task"], name, json.dumps(scores), flush=True)
            results[f"{found['model']}, {found['task']}"] = found
            timing.write(options.output, "export_lora", results)
            gc.collect()


def write_smoke_run(folder: Path, words: Sequence[str]) -> Path:
    """Write what a finished run leaves of its adapter, which here was never trained."""
    words = [*words, "method=dual_lora", "method.init_std=0.2", "profile=quick", "data.source=sample"]
    config = compose_one([*words, "launch.device=cpu", f"results={folder}"])
    task = tasks.load(config)
    loaded = models.load(config.model, task.head, dtype="float32", seed=0)
    model = methods.apply(loaded.model, config.method, model_config=config.model, head=task.head, seed=0)
    model.save_pretrained(folder / "adapter")
    write_json(folder / "config.json", config.to_dict())
    return folder
