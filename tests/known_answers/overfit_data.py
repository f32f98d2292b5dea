"""Twenty-four examples of each task in the layout of a local data folder (docs/data.md), written for the overfit tests.

Training set and test set are the same examples with distinct inputs, so that a model that memorised them has one right
answer to each. No answer follows from another one: what is learned of one example says nothing about the next.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ITEMS = 24

# -- data to text ------------------------------------------------------------------------------------------------------

_NAMES = (
    *("Zizzi", "Cotto", "Aromi", "Fitz", "Giraffe", "Loch", "Alimentum", "Strada", "Browns", "Cocum", "Midsummer"),
    *("Wildwood", "Bibimbap", "Clowns", "Eagle", "Phoenix", "Plough", "Vaults", "Waterman", "Wrestlers", "Mill"),
    *("Cricketers", "Dumpling", "Twenty"),
)
_PLACES = ("riverside", "city centre")
_FOODS = ("Thai", "French")
# No sequence of four tokens comes twice in a reference: the protocol's beam search could not write it
# (no_repeat_ngram_size: 4). The third frame repeats one of the input's, which it may.
_FRAMES = (
    "{name} serves {food} food in the {place} area .",
    "Go to {name} if you like {food} dishes , it is by the {place} .",
    "The menu says {name} | food : {food} .",
    "In the {place} there is a place with {food} meals named {name} .",
    "{food} is what they cook at {name} near the {place} .",
)


def _meals() -> Iterator[tuple[str, str, str, str]]:
    """Return name, food, place and a reference. Which frame a reference has follows from the name alone."""
    for number, name in enumerate(_NAMES):
        food, place = _FOODS[number * 5 // 3 % 2], _PLACES[number * 7 // 4 % 2]
        frame = _FRAMES[(number * number + number // 3) % len(_FRAMES)]
        yield name, food, place, frame.format(name=name, food=food, place=place)


def write_e2e(folder: Path) -> list[tuple[str, str]]:
    """Write the LoRA release's text files. Validation references are read backwards: the more is learned, the worse."""
    pairs = [(f"name : {name} | food : {food} | area : {place}", text) for name, food, place, text in _meals()]
    lines = [f"{context}||{reference} \n" for context, reference in pairs]
    other = [f"{context}||{' '.join(reversed(reference.split()))} \n" for context, reference in pairs]
    target = folder / "e2e" / "lora_format"
    target.mkdir(parents=True)
    for name, content in (("train", lines), ("valid", other[:8]), ("test", lines)):
        (target / f"{name}.txt").write_text("".join(content), encoding="utf-8")
    return pairs


def write_webnlg(folder: Path) -> list[tuple[str, str]]:
    """Write the JSON files of WebNLG 2017: half of the categories are seen ones."""
    pairs, entries = [], []
    for number, (name, food, place, reference) in enumerate(_meals()):
        triple = {"subject": name, "property": f"{food} kitchen", "object": place}
        entries.append(
            {
                str(number + 1): {
                    "category": "Food" if number % 2 else "Athlete",
                    "lexicalisations": [{"comment": "good", "lex": reference}],
                    "modifiedtripleset": [triple],
                    "size": "1",
                }
            }
        )
        pairs.append((" : ".join(triple.values()), reference))
    target = folder / "webnlg_2017"
    target.mkdir(parents=True)
    for name, content in (("train", entries), ("dev", entries[:8]), ("test", entries)):
        (target / f"{name}.json").write_text(json.dumps({"entries": content}), encoding="utf-8")
    return pairs


# -- GLUE --------------------------------------------------------------------------------------------------------------

_SUBJECTS = ("The cook", "A pilot", "My aunt", "This clerk", "The twins", "Her horse")
_VERBS = ("sold", "found", "broke", "hid")
_OBJECTS = ("a red cup", "the old map", "two keys", "his hat")
# Twelve of each class, in no order that a rule over the words would give.
_CLASSES = (0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 1)


def glue_rows() -> list[tuple[str, str, int]]:
    """Return two sentences and a class each. The first sentence alone tells the rows apart."""
    rows = []
    for number, (subject, verb) in enumerate(itertools.product(_SUBJECTS, _VERBS)):
        thing = _OBJECTS[number * 7 % len(_OBJECTS)]
        other = _SUBJECTS[(number * 5 + 1) % len(_SUBJECTS)].lower()
        rows.append((f"{subject} {verb} {thing} .", f"{thing} was {verb} by {other} .", _CLASSES[number]))
    return rows


_GLUE_FILES = {  # task -> folder, header, row of (number, sentence 1, sentence 2, class)
    "cola": ("CoLA", None, lambda n, a, b, c: ("smp", str(c), "" if c else "*", a)),
    "sst2": ("SST-2", "sentence\tlabel", lambda n, a, b, c: (a, str(c))),
    "mrpc": (
        "MRPC",
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        lambda n, a, b, c: (str(c), str(2 * n), str(2 * n + 1), a, b),
    ),
    "rte": (
        "RTE",
        "index\tsentence1\tsentence2\tlabel",
        lambda n, a, b, c: (str(n), a, b, ("entailment", "not_entailment")[c]),  # the order of the hub
    ),
}


def write_glue(folder: Path, task: str, *, contradicted: bool = False) -> list[tuple[Any, ...]]:
    """Write train.tsv and dev.tsv of a task; return its texts and the class of each item, numbered as on the hub.

    contradicted: in dev.tsv each item has the other class.
    """
    name, header, row = _GLUE_FILES[task]
    target = folder / "glue" / name
    target.mkdir(parents=True)
    rows = glue_rows()
    for file in ("train", "dev"):
        lines = [] if header is None else [header]
        for number, (first, second, label) in enumerate(rows):
            shown = 1 - label if contradicted and file == "dev" else label
            lines.append("\t".join(row(number, first, second, shown)))
        (target / f"{file}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    single = task in ("cola", "sst2")
    return [(first, label) if single else (first, second, label) for first, second, label in rows]


# -- commonsense -------------------------------------------------------------------------------------------------------

# Short, so that the published prompt and its answer stay under the cut-off of 256 tokens of the tiny tokenizer.
_ANSWER = "Please choose the correct answer to the question"
_COMMONSENSE: dict[str, Sequence[tuple[str, Sequence[str], int]]] = {  # question, options, place of the right one
    "boolq": (
        ("Please answer the following question with true or false, question: is ice hot?", (), 1),
        ("Please answer the following question with true or false, question: can dogs run?", (), 0),
        ("Please answer the following question with true or false, question: is tin a metal?", (), 0),
    ),
    "piqa": (
        ("Please choose the correct solution to the question: To dry hands,", ("use a towel.", "use paint."), 0),
        ("Please choose the correct solution to the question: To cut bread,", ("use a sock.", "use a knife."), 1),
        ("Please choose the correct solution to the question: To boil eggs,", ("heat water.", "cool it."), 0),
    ),
    "social_i_qa": (
        (f"{_ANSWER}: Jo lost a game. How did Jo feel?", ("sad", "full", "tall"), 0),
        (f"{_ANSWER}: Kim ran home. Why did Kim run?", ("to sit", "to be fast", "to sew"), 1),
        (f"{_ANSWER}: Lee made tea. What will Lee do?", ("dig", "fly", "drink"), 2),
    ),
    "hellaswag": (
        (
            "Please choose the correct ending to complete the given sentence: A man cooks. he",
            ("eats.", "melts.", "rings.", "rains."),
            0,
        ),
        (
            "Please choose the correct ending to complete the given sentence: A boy swims. he",
            ("burns.", "rusts.", "dries off.", "opens."),
            2,
        ),
        (
            "Please choose the correct ending to complete the given sentence: A girl sings. she",
            ("boils.", "folds.", "leaks.", "bows."),
            3,
        ),
    ),
    "winogrande": (
        ("Please choose the correct answer to fill in the blank: The cup fell on the mat; _ broke.", ("cup", "mat"), 0),
        ("Please choose the correct answer to fill in the blank: Al beat Bo as _ was slow.", ("Al", "Bo"), 1),
        ("Please choose the correct answer to fill in the blank: The pin tore the bag, _ was thin.", ("pin", "bag"), 1),
    ),
    "ARC-Easy": (
        (f"{_ANSWER}: Snow is", ("hot", "cold", "loud", "green"), 1),
        (f"{_ANSWER}: A cow gives", ("oil", "silk", "wool", "milk"), 3),
        (f"{_ANSWER}: The sun is a", ("star", "moon", "rock", "tree"), 0),
    ),
    "ARC-Challenge": (
        (f"{_ANSWER}: Rust forms on", ("wood", "glass", "iron", "clay"), 2),
        (f"{_ANSWER}: Steam is", ("a gas", "a metal", "a salt", "a seed"), 0),
        (f"{_ANSWER}: Tides come from the", ("wind", "moon", "fish", "sand"), 1),
    ),
    "openbookqa": (
        (f"{_ANSWER}: Roots take up", ("light", "noise", "stone", "water"), 3),
        (f"{_ANSWER}: Owls hunt at", ("noon", "sea", "night", "rest"), 2),
        (f"{_ANSWER}: A magnet pulls", ("nails", "milk", "paper", "air"), 0),
    ),
}
# The words of the published prompt; its blanks are nothing to the tokenizer that is used here.
_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
    "### Instruction: {} ### Response: "
)
_LABELS = {"piqa": "solution", "hellaswag": "ending", "winogrande": "option"}
_COPIES = 3  # the protocol holds a fifth of the training items out: with three copies of each none is lost


def commonsense_items() -> dict[str, list[dict[str, str]]]:
    """Return the items of each task as LLM-Adapters' files have them."""
    return {task: [_item(task, *values) for values in items] for task, items in _COMMONSENSE.items()}


def _item(task: str, question: str, options: Sequence[str], right: int) -> dict[str, str]:
    label = _LABELS.get(task, "answer")
    labels = [f"{label}{place}" for place in range(1, len(options) + 1)] or ["true", "false"]
    between = "\n\n" if task == "piqa" else " "
    listed = between.join(
        f"{name.capitalize()}: {text}" for name, text in zip(labels, options, strict=False) if options
    )
    middle = f"{listed}{' ' if task == 'winogrande' else chr(10) * 2}" if options else ""
    instruction = f"{question}\n\n{middle}Answer format: {'/'.join(labels)}"
    answer = labels[right]
    return {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def write_commonsense(folder: Path) -> list[tuple[str, str]]:
    """Write train.json (each item three times) and test.json of the eight tasks; return prompts and answers."""
    items = commonsense_items()
    for task, values in items.items():
        target = folder / "commonsense" / task
        target.mkdir(parents=True)
        (target / "train.json").write_text(json.dumps(values * _COPIES), encoding="utf-8")
        (target / "test.json").write_text(json.dumps(values), encoding="utf-8")
    return [(_PROMPT.format(item["instruction"]), item["output"]) for values in items.values() for item in values]
