"""Time an evaluation's passes, by batch size, as CUDA graphs and without: ranked candidates and validation losses.

    python run.py bench passes data.source=local data.dir=data            # results/benchmarks/passes.json
    python run.py bench passes model=llama2 model.path=FOLDER items=4000 ...

The model is SmolLM2-135M with its own weights or those of `model.path`; settings are those of a run. Candidates are
those of the commonsense tasks' test items, spread over them, scored as `task.scorings=[cloze]` does; validation losses
are of E2E's development pairs. Tokenizing is in the seconds of the first, not of the second.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from dual_lora import models, tasks
from dual_lora.benchmarks import timing
from dual_lora.config.compose import compose_one
from dual_lora.evaluation.causal_lm import Collator
from dual_lora.evaluation.passes import Passes, passes_for
from dual_lora.evaluation.ranking import rank
from dual_lora.evaluation.validation import losses
from dual_lora.tasks.encoding import encode_all

BATCHES = {"cloze": (512, 2048), "validation": (4096, 16_384)}  # candidates; tokens
FIRST = 8  # items that are not timed
ROWS = 1024  # of E2E's development set, as the study validates on


def run(options: argparse.Namespace) -> None:
    """Time both parts, and write each row as it is done."""
    device = "cpu" if options.smoke else "cuda"
    model = "model=tiny_llama" if options.smoke else "model=smollm2"
    words = [model, "method=none", "protocol=strict", *(["data.source=sample"] if options.smoke else [])]
    results: dict[str, Any] = {
        "environment": timing.environment(device, () if options.smoke else ("transformers", "peft")),
        "command": timing.command(),
        "rows": [],
    }
    loaded: Any = None
    for part, task in (
        ("cloze", ["task=commonsense", "task.target=text", "task.scorings=[cloze]"]),
        ("validation", ["task=e2e"]),
    ):
        config = compose_one([*words, *task, *options.settings])
        chosen: Any = tasks.load(config)
        if loaded is None:
            dtype = models.resolve_dtype(config.model, device)
            loaded = models.load(config.model, chosen.head, dtype=dtype, seed=config.seed, device=device)
        compute = _cloze(loaded, chosen, options.items) if part == "cloze" else _validation(loaded, chosen, config)
        compute(BATCHES[part][0], Passes(), FIRST)  # loads kernels
        for batch in BATCHES[part]:
            for graphs in ("off", "auto"):
                row = {"part": part, "batch": batch, "graphs": graphs, **_timed(compute, loaded.model, batch, graphs)}
                results["rows"].append(row)
                print(json.dumps(row), flush=True)
                timing.write(options.output, "passes", results)


def _timed(compute: Callable[..., int], model: Any, batch: int, graphs: str) -> dict[str, Any]:
    cuda = next(model.parameters()).device.type == "cuda"
    passes = passes_for(model, graphs)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    items = compute(batch, passes)
    row = {"items": items, "seconds": round(time.perf_counter() - begun, 3), **passes.report()}
    return row | ({"reserved_GiB": torch.cuda.max_memory_reserved() / 2**30} if cuda else {})


def _cloze(loaded: Any, task: Any, items: int | None) -> Callable[..., int]:
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


def _validation(loaded: Any, task: Any, config: Any) -> Callable[..., int]:
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
