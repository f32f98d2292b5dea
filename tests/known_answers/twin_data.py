"""The data of the twins: published forms, written and read by hand."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import ROOT
from tests.known_answers.twin import Row

SAMPLE = ROOT / "dual_lora" / "tasks" / "sample"


def write_e2e(folder: Path) -> None:
    """Write the text files of the LoRA release's form, with restaurants drawn here."""
    draw = random.Random(7)
    names = ["The Old Mill", "Blue Door", "Market Hall", "The Green Man", "Harbour Lights"]
    foods, areas = ["Italian", "French", "Indian"], ["riverside", "city centre"]
    (folder / "e2e" / "lora_format").mkdir(parents=True)
    for name, count in (("train", 90), ("valid", 10), ("test", 4)):
        lines = []
        for _ in range(count):
            place, food, area = draw.choice(names), draw.choice(foods), draw.choice(areas)
            context, text = f"name : {place} | food : {food}", f"{place} serves {food} food"
            if draw.random() < 0.6:
                context, text = f"{context} | area : {area}", f"{text} in the {area}"
            if draw.random() < 0.3:
                context, text = f"{context} | family friendly : yes", f"{text} and families are welcome there"
            lines.append(f"{context}||{text} .")
        (folder / "e2e" / "lora_format" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def read_e2e(folder: Path, tokenizer: Any) -> tuple[list[Row], list[Row]]:
    """context<|endoftext|> reference<|endoftext|>, with a loss on the reference and the end."""

    def rows(name: str) -> list[Row]:
        found = []
        for line in (folder / "e2e" / "lora_format" / f"{name}.txt").read_text().splitlines():
            context, reference = line.split("||")
            before = tokenizer(context)["input_ids"] + [tokenizer.eos_token_id]
            answer = tokenizer(" " + reference)["input_ids"] + [tokenizer.eos_token_id]
            found.append(_text(before, answer))
        return found

    return rows("train"), rows("valid")


def held_out(count: int) -> list[int]:
    """Return the validation items of the published split: datasets' train_test_split(7, shuffle=True, seed=42)."""
    return np.random.default_rng(42).permutation(count)[:7].tolist()


def write_commonsense(folder: Path) -> None:
    """Write items in LLM-Adapters' form. Those that will be held out speak of other things than the rest.

    So what is learned from the rest helps them for a while only, and the lowest validation loss is not the last.
    """
    draw = random.Random(7)
    apart = held_out(40)
    (folder / "commonsense" / "boolq").mkdir(parents=True)
    for name, count in (("train", 40), ("test", 1)):
        items = []
        for number in range(count):
            words = ["is", "the", "city", "river", "moon", "made", "of", "stone", "soup", "warm"]
            if name == "train" and number in apart:
                words = ["ξένος", "ψυχή", "φύσις"]
            question = " ".join(draw.choice(words) for _ in range(draw.randint(5, 30)))
            answer = draw.choice(["true", "false"])
            text = f"Please answer the following question with true or false, question: {question}?"
            items.append(
                {
                    "instruction": f"{text}\n\nAnswer format: true/false",
                    "input": "",
                    "output": f"the correct answer is {answer}",
                    "answer": answer,
                }
            )
        (folder / "commonsense" / "boolq" / f"{name}.json").write_text(json.dumps(items))


def read_commonsense(folder: Path, tokenizer: Any) -> tuple[list[Row], list[Row]]:
    """The published training text, cut at 256 tokens, with a loss on all of it."""
    indent = " " * 16
    rows = []
    for item in json.loads((folder / "commonsense" / "boolq" / "train.json").read_text()):
        text = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"  \n\n{indent}### Instruction:\n{indent}{item['instruction']}\n{indent}\n{indent}### Response:\n{indent}"
            f"{item['output']}"
        )
        ids = tokenizer(text)["input_ids"]
        rows.append(_text([], ids[:256] if len(ids) >= 256 else [*ids, tokenizer.eos_token_id]))
    apart = held_out(len(rows))
    # The rest keeps the order of the shuffle.
    rest = np.random.default_rng(42).permutation(len(rows)).tolist()[len(apart) :]
    return [rows[place] for place in rest], [rows[place] for place in apart]


def read_pairs(folder: str, columns: tuple[str, str], target: str, kind: type) -> Callable[..., Any]:
    """Two sentences and a class or a number, from the files of GLUE."""

    def read(_: Path, tokenizer: Any) -> tuple[list[Row], list[Row]]:
        parts = []
        for name in ("train", "dev"):
            with (SAMPLE / "glue" / folder / f"{name}.tsv").open(newline="") as file:
                items = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
            encoded = [dict(tokenizer(*(item[column] for column in columns))) for item in items]
            parts.append([{**row, "labels": kind(i[target])} for row, i in zip(encoded, items, strict=True)])
        return parts[0], parts[1]

    return read


def _text(before: list[int], answer: list[int]) -> Row:
    ids = before + answer
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(before) + answer}
