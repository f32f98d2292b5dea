"""A data folder of some eighty training items a task, and what they say, read from its files without the project.

Items are the first of the real files where `DUAL_LORA_DATA` has them, else of the shipped sample, else written here.
The folder has the layout of `data.source=local`, so the project reads it as it reads a user's.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import dual_lora

ROWS = 80  # of each training file; more than four global batches, so that grouping by length has something to do
SAMPLE = Path(dual_lora.__file__).parent / "tasks" / "sample"
REAL = Path(os.environ["DUAL_LORA_DATA"]) if "DUAL_LORA_DATA" in os.environ else None


@dataclass(frozen=True)
class Text:
    """A training item for a causal model."""

    before: str  # what the model is given
    answer: str  # what it learns to write


@dataclass(frozen=True)
class Labelled:
    """A training item for an encoder."""

    texts: tuple[str, ...]
    label: int | float


# ------------------------------------------------------------------ the folder


def _open(folder: Path, name: str) -> IO[str] | None:
    if (folder / name).is_file():
        return (folder / name).open(encoding="utf-8", newline="\n")
    if (folder / f"{name}.gz").is_file():
        return gzip.open(folder / f"{name}.gz", "rt", encoding="utf-8", newline="\n")
    return None


def _source(name: str, *roots: Path | None) -> IO[str] | None:
    found = (_open(root, name) for root in roots if root is not None)
    return next((file for file in found if file is not None), None)


def _first_objects(file: IO[str], count: int) -> list[Any]:
    """Return the first objects of the first list in a JSON text, of which no more than needed is read."""
    text, decoder = "", json.JSONDecoder()
    found: list[Any] = []
    at = -1
    while len(found) < count:
        piece = file.read(1 << 16)
        text += piece
        if at < 0 and "[" in text:
            at = text.index("[") + 1
        while at >= 0 and len(found) < count:
            start = at + len(re.match(r"[\s,]*", text[at:])[0])
            try:
                value, at = decoder.raw_decode(text, start)
            except ValueError:
                break
            found.append(value)
        if not piece:
            break
    return found


def write(folder: Path) -> None:
    """Write the data folder."""
    _write_e2e(folder)
    _write_triples(folder)
    for subset in SUBSETS:
        for split, count in (("train", 12), ("test", 2)):
            file = _source(f"commonsense/{subset}/{split}.json", REAL, SAMPLE)
            if file is not None:
                # The shortest of the first: the logits of long texts over Llama 3's vocabulary take seconds.
                items = sorted(_first_objects(file, 4 * count), key=lambda item: len(item["instruction"]))
                _dump(folder / "commonsense" / subset / f"{split}.json", items[:count])
    for name, task in GLUE.items():
        for split in ("train", *task.development):
            # The QNLI at hand is its development set: a training set as good as any for this.
            alike = "dev" if name == "qnli" else split
            file = _source(f"glue/{task.folder}/{alike}.tsv", REAL) or _source(
                f"glue/{task.folder}/{split}.tsv", SAMPLE
            )
            assert file is not None, task.folder
            _text(
                folder / "glue" / task.folder / f"{split}.tsv", itertools.islice(file, ROWS if split == "train" else 4)
            )


def _text(path: Path, lines: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8", newline="")


def _dump(path: Path, value: Any) -> None:
    _text(path, [json.dumps(value)])


def _written() -> Iterator[tuple[str, str, str]]:
    """Texts of many lengths for where no data is at hand: a name, a kind, a sentence."""
    names = ["The Mill", "Old Bank Café", "Green Man", "Zizzi", "The Punter of Cambridge"]
    kinds = ["pub", "restaurant", "coffee shop"]
    ends = [
        "",
        " near the river",
        " in the city centre, not far from the station",
        ". Families are welcome; it is cheap",
    ]
    for end, kind, name in itertools.product(ends, kinds, names):
        yield name, kind, f"{name} is a {kind}{end} ."
    for name, end in itertools.product(names, ends):
        yield name, "bar", f"{name} is{end or ' here'} ."


def _write_e2e(folder: Path) -> None:
    for split, count in (("train", ROWS), ("valid", 2), ("test", 2)):
        file = _source(f"e2e/lora_format/{split}.txt", REAL)
        lines = list(itertools.islice(file, count)) if file else []
        lines = lines or [f"name : {name} | Type : {kind}||{text} \n" for name, kind, text in _written()][:count]
        _text(folder / "e2e" / "lora_format" / f"{split}.txt", lines)
    for name, count in (("trainset", ROWS), ("devset", 2), ("testset_w_refs", 2)):
        file = _source(f"e2e/official/{name}.csv", REAL, SAMPLE)
        assert file is not None
        rows = list(itertools.islice(csv.reader(file), count + 1))
        path = folder / "e2e" / "official" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as target:
            csv.writer(target).writerows(rows)


def _write_triples(folder: Path) -> None:
    entries = [
        {"1": {"category": "Food", "modifiedtripleset": [{"subject": name, "property": "kindOf", "object": kind}],
               "lexicalisations": [{"comment": "good", "lex": text}, {"comment": "bad", "lex": "x"}]}}
        for name, kind, text in _written()
    ]  # fmt: skip
    for split, count in (("train", 40), ("dev", 2), ("test", 2)):
        file = _source(f"webnlg_2017/{split}.json", REAL)
        chosen = _first_objects(file, count) if file else entries[: 2 * count]
        _dump(folder / "webnlg_2017" / f"{split}.json", {"entries": chosen})
    pairs = [
        {"tripleset": [[n, "KIND", k], [n, "SAID_OF", "yes"]], "annotations": [{"text": t}]} for n, k, t in _written()
    ]
    file = _source("dart_v1.1.1_partial/dev.json", REAL)
    chosen = _first_objects(file, ROWS) if file else pairs
    _dump(folder / "dart_v1.1.1_partial" / "train.json", chosen)
    _dump(folder / "dart_v1.1.1_partial" / "dev.json", chosen[:2])
    entry = "<entry><modifiedtripleset><mtriple>a | b | c</mtriple></modifiedtripleset><lex>a</lex></entry>"
    _text(folder / "dart_v1.1.1_partial" / "test.xml", ["<?xml version='1.0'?><benchmark>", entry, "</benchmark>"])


# ------------------------------------------------------------------ reading: data to text


def e2e(folder: Path, separator: str) -> list[Text]:
    """Read lines `context||reference `; both lose their outer blanks, and a blank stands before the answer."""
    lines = (folder / "e2e" / "lora_format" / "train.txt").read_text(encoding="utf-8").split("\n")[:-1]
    parts = [line.split("||") for line in lines]
    return [Text(context.strip() + separator, " " + reference.strip()) for context, reference in parts]


_E2E_NAMES = {
    "eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly", "name": "name", "food": "food",
    "customer rating": "customer rating", "area": "area", "near": "near",
}  # fmt: skip


def e2e_official(folder: Path, separator: str) -> list[Text]:
    """Read the challenge's CSV: name[Blue Spice], area[riverside] becomes name : Blue Spice | area : riverside."""
    found = []
    with (folder / "e2e" / "official" / "trainset.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pairs = re.findall(r"([^,\[\]]+)\[([^\]]*)\]", row["mr"])
            values = [(_E2E_NAMES[key.strip()], value.replace("£", "£ ")) for key, value in pairs]
            spaced = [f"{key} : " + re.sub(r"([0-9])-([0-9])", r"\1 - \2", value) for key, value in values]
            found.append(Text(" | ".join(spaced) + separator, " " + " ".join(row["ref"].split())))
    return found


def webnlg(folder: Path, separator: str) -> list[Text]:
    """Read the JSON: subject : property : object | ..., one item for each text marked good."""
    found = []
    for entry in json.loads((folder / "webnlg_2017" / "train.json").read_text())["entries"]:
        (value,) = entry.values()
        triples = [(t["subject"], t["property"], t["object"]) for t in value["modifiedtripleset"]]
        for text in value["lexicalisations"]:
            if text["comment"] == "good":
                found.append(Text(_linear(triples) + separator, " " + " ".join(text["lex"].split())))
    return found


def dart(folder: Path, separator: str) -> list[Text]:
    """Read the JSON: as WebNLG, with the property in small letters."""
    found = []
    for entry in json.loads((folder / "dart_v1.1.1_partial" / "train.json").read_text()):
        triples = [(subject, name.lower(), thing) for subject, name, thing in entry["tripleset"]]
        for text in entry["annotations"]:
            found.append(Text(_linear(triples) + separator, " " + " ".join(text["text"].split())))
    return found


def _linear(triples: Sequence[tuple[str, str, str]]) -> str:
    return " | ".join(" : ".join(" ".join(part.split()) for part in triple) for triple in triples)


# ------------------------------------------------------------------ reading: commonsense

SUBSETS = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
_REQUEST = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_BLANKS = "                "  # sixteen


def commonsense(folder: Path, *, published: bool) -> list[Text]:
    """Read the items in the training order's own order: the files one after the other."""
    found = []
    for subset in SUBSETS:
        path = folder / "commonsense" / subset / "train.json"
        for item in json.loads(path.read_text()) if path.exists() else []:
            text = item["instruction"]
            if published:
                asked = f"{_BLANKS}### Instruction:\n{_BLANKS}{text}\n"
                before = f"{_REQUEST}  \n\n{asked}{_BLANKS}\n{_BLANKS}### Response:\n{_BLANKS}"
            else:
                before = f"{_REQUEST}\n\n### Instruction:\n{text}\n\n### Response:\n"
            found.append(Text(before, item["output"]))
    return found


# ------------------------------------------------------------------ reading: GLUE


@dataclass(frozen=True)
class GlueFile:
    """Where a GLUE task's training file holds what, and the numbers of its labels (None: a similarity)."""

    folder: str
    texts: tuple[str | int, ...]  # columns by name, or by place where there is no header
    label: str | int
    numbers: dict[str, int] | None
    development: tuple[str, ...] = ("dev",)


_YES_NO = {"0": 0, "1": 1}
_PAIR = ("sentence1", "sentence2")
_FOLLOWS = {"entailment": 0, "not_entailment": 1}
GLUE = {
    "cola": GlueFile("CoLA", (3,), 1, _YES_NO),
    "sst2": GlueFile("SST-2", ("sentence",), "label", _YES_NO),
    "mrpc": GlueFile("MRPC", ("#1 String", "#2 String"), "Quality", _YES_NO),
    "stsb": GlueFile("STS-B", _PAIR, "score", None),
    "qqp": GlueFile("QQP", ("question1", "question2"), "is_duplicate", _YES_NO),
    "mnli": GlueFile("MNLI", _PAIR, "gold_label", {"entailment": 0, "neutral": 1, "contradiction": 2},
                     ("dev_matched", "dev_mismatched")),
    "qnli": GlueFile("QNLI", ("question", "sentence"), "label", _FOLLOWS),
    "rte": GlueFile("RTE", _PAIR, "label", _FOLLOWS),
    "wnli": GlueFile("WNLI", _PAIR, "label", _YES_NO),
}  # fmt: skip


def glue(folder: Path, name: str) -> list[Labelled]:
    """Read the training file: tabs between fields, nothing quoted."""
    task = GLUE[name]
    lines = (folder / "glue" / task.folder / "train.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    rows = [line.rstrip("\r").split("\t") for line in lines]
    header = rows.pop(0) if isinstance(task.label, str) else []

    def cell(row: list[str], column: str | int) -> str:
        return row[column if isinstance(column, int) else header.index(column)]

    found = []
    for row in rows:
        word = cell(row, task.label)
        label = float(word) if task.numbers is None else task.numbers[word]
        found.append(Labelled(tuple(cell(row, column) for column in task.texts), label))
    return found
