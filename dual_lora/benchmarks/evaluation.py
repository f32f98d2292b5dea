"""Time the evaluation of a causal model against the published loop, on the same model and items.

    python run.py bench evaluation model=smollm2 task=commonsense protocol=strict data.source=local data.dir=FOLDER
    python run.py bench evaluation adapter=FOLDER model=llama2 ... items=200 out=results/benchmarks/NAME.json

The published loop (NVlabs/DoRA commonsense_evaluate.py): one item at a time, beam 4, at most 32 new tokens, no
attention mask, adapter merged. Ours: batched, masked, with the same beams and greedily. Reported: items per second,
accuracy, and on how many items the reading agrees with the published loop's.

All settings but the options below are those of a run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dual_lora.benchmarks import timing
from dual_lora.config import ConfigError, DecodingConfig, RunConfig
from dual_lora.config.compose import compose_one
from dual_lora.methods import saved
from dual_lora.tasks.base import Example, Task

PUBLISHED = DecodingConfig(beams=4, max_new_tokens=32)
GREEDY = DecodingConfig(beams=1, max_new_tokens=32)


def run(options: argparse.Namespace) -> None:
    """Print the numbers and write them where `out` says. Raises `ConfigError` for what cannot be timed."""
    smoke = ["model=tiny_llama", "task=commonsense", "data.source=sample"] if options.smoke else []
    text = json.dumps(_bench(compose_one(["method=none", *smoke, *options.settings]), options), indent=1)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


def _bench(config: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from dual_lora import tasks

    device = "cuda" if torch.cuda.is_available() and config.launch.device != "cpu" else "cpu"
    task = tasks.load(config)
    model, tokenizer = _random(config, options.vocabulary, device) if options.weights else _loaded(config, task, device)
    if options.adapter is not None:
        model = saved.with_adapter(model, options.adapter).merge_and_unload()
    examples = task.examples("test")
    batch_size = config.launch.eval_batch or (128 if device == "cuda" else 16)
    loops = compare(model, tokenizer, task, _spread(examples, options.items), batch_size)
    many = _spread(examples, options.greedy)
    return {
        "model": config.model.name,
        "weights": options.weights or "the model's",
        "adapter": None if options.adapter is None else str(options.adapter),
        "protocol": config.protocol.name,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "dtype": str(next(model.parameters()).dtype),
        "batch_size": batch_size,
        "items": options.items,
        "versions": {"torch": torch.__version__, "transformers": __import__("transformers").__version__},
        "loops": loops,
        "greedy": _greedy(model, tokenizer, task, many, batch_size) if options.greedy else None,
        "command": timing.command(),
    }


def _loaded(config: RunConfig, task: Task, device: str) -> tuple[Any, Any]:
    from dual_lora import models

    dtype = models.resolve_dtype(config.model, device)
    loaded = models.load(config.model, task.head, dtype=dtype, seed=config.seed, device=device)
    return loaded.model, loaded.tokenizer


def _random(config: RunConfig, vocabulary: Path | None, device: str) -> tuple[Any, Any]:
    """Return a bfloat16 model of the YAML's dimensions with random weights, and the tokenizer of a folder."""
    from transformers import LlamaTokenizer

    from dual_lora.benchmarks import random_models

    if vocabulary is None or config.model.family != "llama":
        raise ConfigError("weights=random is for LLaMA models and needs vocabulary=FOLDER (with its tokenizer.model)")
    return random_models.made(config.model, device).eval(), LlamaTokenizer.from_pretrained(vocabulary)


def _spread(examples: Sequence[Example], count: int) -> Sequence[Example]:
    return examples[:: max(1, len(examples) // max(1, count))][:count]


def _ours(
    model: Any, tokenizer: Any, task: Task, examples: Sequence[Example], batch_size: int, decoding: DecodingConfig
) -> Callable[[Sequence[str]], list[str]]:
    """Return the suite's loop over prompts, which are those of `examples` or its first ones."""
    from dual_lora.evaluation.generation import generate
    from dual_lora.evaluation.static_decoding import decoding_for

    return lambda texts: generate(
        model,
        tokenizer,
        texts,
        decoding,
        batch_size=max(1, batch_size // decoding.beams),
        complete=lambda index, reply: task.complete(reply, examples[index]),
        static=decoding_for(model, graphs="auto"),
    )


def _greedy(model: Any, tokenizer: Any, task: Task, examples: Sequence[Example], batch_size: int) -> dict[str, Any]:
    started = time.perf_counter()
    prompts = [task.render(example, training=False).prompt for example in examples]
    _ours(model, tokenizer, task, examples, batch_size, GREEDY)(prompts)
    seconds = time.perf_counter() - started
    return {"items": len(examples), "seconds": round(seconds, 3), "items_per_second": round(len(examples) / seconds, 2)}


def compare(model: Any, tokenizer: Any, task: Task, examples: Sequence[Example], batch_size: int) -> dict[str, Any]:
    """Return seconds, items per second, accuracy and agreement of the published loop and of ours."""
    prompts = [task.render(example, training=False).prompt for example in examples]
    loops = {
        "published": lambda texts: [published_reply(model, tokenizer, text) for text in texts],
        "ours, beam 4": _ours(model, tokenizer, task, examples, batch_size, PUBLISHED),
        "ours, greedy": _ours(model, tokenizer, task, examples, batch_size, GREEDY),
    }
    readings: dict[str, list[Any]] = {}
    result: dict[str, Any] = {}
    for name, loop in loops.items():
        loop(prompts[: min(4, len(prompts))])  # compilation and caches are not the loop's
        started = time.perf_counter()
        replies = loop(prompts)
        seconds = time.perf_counter() - started
        readings[name] = [task.read(reply, example) for reply, example in zip(replies, examples, strict=True)]
        right = sum(reading == e.references[0] for reading, e in zip(readings[name], examples, strict=True))
        same = sum(a == b for a, b in zip(readings[name], readings["published"], strict=True))
        result[name] = {
            "seconds": round(seconds, 3),
            "items_per_second": round(len(prompts) / seconds, 3),
            "accuracy": right / len(prompts),
            "same_reading_as_published": same / len(prompts),
            "times_published": round(result["published"]["seconds"] / seconds, 2) if "published" in result else 1.0,
        }
    return result


def published_reply(model: Any, tokenizer: Any, prompt: str) -> str:
    """Return the reply as the published loop makes and cuts it. In batch 1 the mask it leaves out would be all ones."""
    import torch
    from transformers import GenerationConfig

    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(next(model.parameters()).device)
    settings = GenerationConfig(
        num_beams=PUBLISHED.beams,
        max_new_tokens=PUBLISHED.max_new_tokens,
        do_sample=False,  # the default it relies on: temperature 0.1, top-p 0.75 and top-k 40 have no effect
        repetition_penalty=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        return_dict_in_generate=True,
        output_scores=True,
    )
    with torch.no_grad():
        sequences = model.generate(input_ids=ids, generation_config=settings).sequences
    text = tokenizer.batch_decode(sequences, skip_special_tokens=True)[0]
    return str(text.split("### Response:")[-1].strip())
