"""Time an evaluation by batch size, with CUDA graphs and without: ranked candidates, validation losses, replies.

    python run.py bench passes data.source=local data.dir=data            # results/benchmarks/passes.json
    python run.py bench passes model=llama2 model.path=FOLDER --items 4000 --adapter FOLDER ...

The model is SmolLM2-135M with its own weights or those of `model.path`; settings are those of a run. Candidates are
those of the commonsense tasks' test items, spread over them, scored as `task.scorings=[cloze]` does; validation losses
are of E2E's development pairs; replies are to E2E's test inputs, by the protocol's beams and by the adapter's weights,
merged. A model that does not know the task writes to the last token allowed. Tokenizing is in the seconds of the first
and the last part, not of the second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from dual_lora import models, tasks
from dual_lora.benchmarks import timing
from dual_lora.config import RunConfig
from dual_lora.config.compose import compose_one
from dual_lora.evaluation.causal_lm import Collator
from dual_lora.evaluation.generation import generate
from dual_lora.evaluation.passes import Passes, passes_for
from dual_lora.evaluation.ranking import rank
from dual_lora.evaluation.static_decoding import StaticDecoding, decoding_for
from dual_lora.evaluation.validation import losses
from dual_lora.methods import saved
from dual_lora.models import LoadedModel
from dual_lora.tasks.base import Task
from dual_lora.tasks.encoding import encode_all

BATCHES = {"cloze": (512, 2048), "validation": (4096, 16_384), "replies": (51,)}  # candidates; tokens; prompts
FIRST = 8  # items that are not timed
ROWS = 1024  # of E2E's development set, as the study validates on


def run(options: argparse.Namespace) -> None:
    """Time both parts, and write each row as it is done."""
    device = "cpu" if options.smoke else "cuda"
    model = "model=tiny_llama" if options.smoke else "model=smollm2"
    words = [model, "method=none", "protocol=strict", *(["data.source=sample"] if options.smoke else [])]
    results: dict[str, Any] = {
        "environment": timing.environment(device, ("transformers", "peft")),
        "command": timing.command(),
        "rows": [],
    }
    loaded: LoadedModel | None = None
    for part, task in (
        ("cloze", ["task=commonsense", "task.target=text", "task.scorings=[cloze]"]),
        ("validation", ["task=e2e"]),
        ("replies", ["task=e2e"]),
    ):
        config = compose_one([*words, *task, *options.settings])
        chosen = tasks.load(config)
        if loaded is None:
            dtype = models.resolve_dtype(config.model, device)
            loaded = models.load(config.model, chosen.head, dtype=dtype, seed=config.seed, device=device)
        if part == "cloze":
            compute = _cloze(loaded, chosen, options.items)
        elif part == "validation":
            compute = _validation(loaded, chosen, config)
        else:
            if options.adapter is not None:
                merged = saved.with_adapter(loaded.model, options.adapter).merge_and_unload()
                loaded = dataclasses.replace(loaded, model=merged)
            compute = _replies(loaded, chosen, config)
        compute(BATCHES[part][0], _way(part, loaded.model, "off"), FIRST)  # loads kernels
        for batch in BATCHES[part]:
            for graphs in ("grows", "off", "auto") if part == "replies" else ("off", "auto"):
                way = _way(part, loaded.model, graphs)
                row = {"part": part, "batch": batch, "graphs": graphs, **_timed(compute, loaded.model, batch, way)}
                results["rows"].append(row)
                print(json.dumps(row), flush=True)
                timing.write(options.output, "passes", results)


def _way(part: str, model: PreTrainedModel, graphs: str) -> Passes | StaticDecoding | None:
    """Return what computes: passes, or for replies a cache of a fixed size; None for one that grows."""
    if part != "replies":
        return passes_for(model, graphs)
    return None if graphs == "grows" else decoding_for(model, graphs)


def _timed(
    compute: Callable[..., int], model: PreTrainedModel, batch: int, way: Passes | StaticDecoding | None
) -> dict[str, Any]:
    cuda = next(model.parameters()).device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    items = compute(batch, way)
    row = {"items": items, "seconds": round(time.perf_counter() - begun, 3)}
    row |= way.report() if isinstance(way, Passes) else {"replays": getattr(way, "replays", 0)}
    return row | ({"reserved_GiB": torch.cuda.max_memory_reserved() / 2**30} if cuda else {})


def _cloze(loaded: LoadedModel, task: Task, items: int | None) -> Callable[..., int]:
    examples = task.examples("test")
    chosen = examples[:: max(1, len(examples) // items)][:items] if items else examples
    asked = [task.ranking(example, "cloze") for example in chosen]
    prompts, candidates = [prompt for prompt, _ in asked], [texts for _, texts in asked]

    def compute(batch: int, passes: Passes, count: int | None = None) -> int:
        with torch.autocast(loaded.model.device.type, torch.bfloat16, cache_enabled=False):
            return len(
                rank(
                    loaded.model, loaded.tokenizer, prompts[:count], candidates[:count], batch_size=batch, passes=passes
                )
            )

    return compute


def _validation(loaded: LoadedModel, task: Task, config: RunConfig) -> Callable[..., int]:
    tokenizer = loaded.tokenizer
    tokenizer.padding_side = "right"
    prompts = [task.render(example, training=True) for example in task.examples("validation")[:ROWS]]
    rows, _ = encode_all(prompts, tokenizer, config.protocol, config.recipe.max_length_tokens)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]

    def compute(batch: int, passes: Passes, count: int | None = None) -> int:
        collator = Collator(tokenizer, few_shapes=passes.few_shapes)
        with torch.autocast(loaded.model.device.type, torch.bfloat16, cache_enabled=False):
            return len(losses(loaded.model, rows[:count], collator, batch_tokens=batch, passes=passes)[1])

    return compute


def _replies(loaded: LoadedModel, task: Task, config: RunConfig) -> Callable[..., int]:
    prompts = [task.render(example, training=False).prompt for example in task.examples("test")]
    decoding = config.protocol.decoding

    def compute(batch: int, static: StaticDecoding | None, count: int | None = None) -> int:
        with torch.autocast(loaded.model.device.type, torch.bfloat16, cache_enabled=False):
            return len(
                generate(loaded.model, loaded.tokenizer, prompts[:count], decoding, batch_size=batch, static=static)
            )

    return compute
