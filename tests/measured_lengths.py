"""How long the texts of each task are in each tokenizer: what a plan knows of batches before it reads any data.

    DUAL_LORA_DATA=FOLDER python -m tests.measured_lengths [TASK ...]    # rewrite lines of dual_lora/tasks/lengths.json

A line is of a task and a tokenizer: quantiles (`QUANTILES`) of a training text's tokens with its answer; the tokens
with a loss, on average and in the longest hundredth; items of the test and validation splits; a test prompt's tokens,
on average and the longest; candidates of an item that are ranked. Of 20,000 training texts drawn at random, and the 300
with the most characters.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

from dual_lora import tasks
from dual_lora.config import RunConfig
from dual_lora.config.compose import compose
from dual_lora.models.loading import _tokenizer
from dual_lora.models.real_tokenizers import real_tokenizer
from dual_lora.models.sources import weights_folder
from dual_lora.tasks.base import ClassificationTask, Example, Task
from dual_lora.tasks.encoding import IGNORED, all_prompt_ids, encode_all
from dual_lora.tasks.lengths import QUANTILES, TABLE, at

_DRAWN, _LONGEST = 20_000, 300
_LIMIT = 100_000  # tokens
MODELS = {"llama2": "llama2", "gpt2": "gpt2", "smollm2": "smollm2", "bert": "minilm", "roberta": "roberta_base"}
WRITTEN, CLASSIFIED = (
    ("commonsense label", "commonsense text", "e2e", "webnlg"),
    ("cola", "sst2", "mrpc", "stsb", "rte"),
)
LINES = [
    *((task, name) for task in WRITTEN for name in list(MODELS)[:3]),
    *((f"glue/{task}", name) for task in CLASSIFIED for name in list(MODELS)[3:]),
]


def measured(line: tuple[str, str], data: Path) -> dict[str, Any]:
    """Return the numbers of a task (with a target, if it has several) in a tokenizer."""
    (task, _, target), name = line[0].partition(" "), line[1]
    words = [f"task.target={target}"] if target else []
    [config] = compose([f"task={task}", f"model={MODELS[name]}", "method=lora", "protocol=strict",
                        "data.source=local", f"data.dir={data}", *words])  # fmt: skip
    held = tasks.load(config)
    tokenizer = _tokenizer_of(config, name, data)
    train = held.examples("train")
    if isinstance(held, ClassificationTask):
        return _classified(held, train, tokenizer)
    texts = [held.render(example, training=True) for example in train]
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place].text))
    drawn = random.Random(0).sample(range(len(texts)), min(_DRAWN, len(texts)))
    rows, _ = encode_all([texts[place] for place in [*drawn, *order[:_LONGEST]]], tokenizer, config.protocol, _LIMIT)
    tokens = [len(row["input_ids"]) for row in rows]
    learned = [sum(label != IGNORED for label in row["labels"][1:]) for row in rows]
    sample = sorted(zip(tokens[: len(drawn)], learned[: len(drawn)], strict=True))
    test = held.examples("test")
    asked = [held.render(example, training=False).prompt for example in test]
    prompts = [len(ids) for ids in all_prompt_ids(_some(asked), tokenizer)]
    return {
        "train": len(train),
        "tokens": _quantiles([length for length, _ in sample], max(tokens)),
        "learned": [statistics.fmean(count for _, count in part) for part in (sample, sample[-len(sample) // 100 :])],
        "validation": len(held.examples("validation")),
        "test": len(test),
        "prompt": [round(statistics.fmean(prompts), 1), max(prompts)],
        "candidates": _candidates(held, test),
    }  # fmt: skip


def _classified(held: ClassificationTask, train: list[Example], tokenizer: Any) -> dict[str, Any]:
    def tokens(examples: list[Example]) -> list[int]:
        columns = [list(column) for column in zip(*(held.texts(example) for example in examples), strict=True)]
        return [len(ids) for ids in tokenizer(*columns)["input_ids"]]

    drawn = random.Random(0).sample(train, min(_DRAWN, len(train)))
    longest = sorted(train, key=lambda example: -sum(map(len, held.texts(example))))[:_LONGEST]
    sample, test = tokens(drawn), held.examples("test")
    prompts = tokens(_some(test))
    return {
        "train": len(train),
        "tokens": _quantiles(sorted(sample), max(tokens(longest))),
        "learned": [0, 0],
        "validation": len(test),
        "test": len(test),
        "prompt": [round(statistics.fmean(prompts), 1), max(prompts)],
        "candidates": 0,
    }


def _some(found: list[Any]) -> list[Any]:
    """Return all, or 5,000 at random and the 300 longest."""
    if len(found) <= 6000:
        return found
    longest = sorted(found, key=lambda one: -len(str(one)))[:_LONGEST]
    return [*random.Random(0).sample(found, 5000), *longest]


def _candidates(held: Task, test: list[Example]) -> float:
    if "cloze" not in held.scorings and "likelihood" not in held.scorings:
        return 0
    scoring = next(name for name in held.scorings if name != "generate")
    return round(statistics.fmean(len(held.ranking(one, scoring)[1]) for one in test), 2)


def _quantiles(ordered: list[int], longest: int) -> list[int]:
    return [*(round(at(ordered, share)) for share in QUANTILES[:-1]), longest]


def _tokenizer_of(config: RunConfig, name: str, data: Path) -> Any:
    if name in ("bert", "smollm2"):
        return _tokenizer(weights_folder(config.model), config.model.family)
    return real_tokenizer(config.model.family, data / "tokenizers", max_length=1024)


def main() -> None:
    import os

    data = Path(os.environ["DUAL_LORA_DATA"])
    held = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    for line in LINES:
        if not sys.argv[1:] or line[0].partition(" ")[0] in sys.argv[1:]:
            held[" ".join(line)] = measured(line, data)
            print(*line, held[" ".join(line)], flush=True)
            lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(values)}" for key, values in sorted(held.items()))
            TABLE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
