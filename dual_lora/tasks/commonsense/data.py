"""Where the eight tasks come from: files (local or shipped sample), or the pinned published files.

Layout of a folder: `commonsense/<task>/{train,test}.json` (or .gz), LLM-Adapters' JSON lists; HellaSwag's test may be
`test_detagged.json` (markup removed), its train file may be absent; `commonsense/commonsense_170k.json`, where present,
is the training mixture as published and is used instead of the train files.
`hub` means the publisher's own repository at one commit. It is on GitHub: the copies on the Hugging Face hub have only
the training file. Every download is compared with the id it must have.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dual_lora.config import DataConfig, DataError
from dual_lora.tasks.base import Example
from dual_lora.tasks.commonsense.items import SUBSETS, parse, read
from dual_lora.tasks.downloads import pinned_file
from dual_lora.tasks.files import exists, fail, read_json_list

FIELDS = {"instruction": str, "input": str, "output": str, "answer": str}
MIXTURE = "commonsense_170k"
SAMPLE = Path(__file__).resolve().parent.parent / "sample"
ORIGIN = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/"
REVISION = "816657208af4db747803f87ba40a4c71383fed7a"
# What identifies each file at REVISION: its git blob id, or the sha256 of its text with "\r\n" line ends, as a public
# manifest of that revision has it. The seven test files without HellaSwag were compared with both.
IDS: dict[str, tuple[str, ...]] = {
    f"ft-training_set/{MIXTURE}.json": ("529e426b33d4cdb1d0c4a275a1a7245ad081fd91", "687b018be6b46655"),
    "dataset/boolq/test.json": ("6d7edb0a8e8a6566b546ccf0d98d24e48db3fdf3",),
    "dataset/piqa/test.json": ("f7a1c260692ef31796d4763cb6334f316a754fed",),
    "dataset/social_i_qa/test.json": ("eadf221799ca394367b144c0f86ee0436db409d2",),
    "dataset/hellaswag/test.json": ("183c49204150", "a1bfd0f1729c7e62"),
    "dataset/winogrande/test.json": ("21257263593dd4d00546e1918c88ca0f357b08ad",),
    "dataset/ARC-Easy/test.json": ("6c0d30aaedaeca148df6bcd7aaacf7c31e6ad70f",),
    "dataset/ARC-Challenge/test.json": ("9540685439144200b5a7e48dab9ca4655be2af09",),
    "dataset/openbookqa/test.json": ("a6e69676104bcb77237388c3b5a3f0dcbb81d1e2",),
}
# (train, test) items as published: LLM-Adapters' files, and the table of its README.
PUBLISHED = {
    "boolq": (9427, 3270),
    "piqa": (16113, 1838),
    "social_i_qa": (33410, 1954),
    "hellaswag": (39905, 10042),
    "winogrande": (63238, 1267),
    "ARC-Easy": (2251, 2376),
    "ARC-Challenge": (1119, 1172),
    "openbookqa": (4957, 500),
}
PUBLISHED_MIXTURE = 170420


@dataclass
class LoadedSplit:
    """Items of one split, the sha256 of each file they came from, and what is unusual about them."""

    examples: list[Example]
    files: dict[str, str]
    notes: list[str]


def load_split(data: DataConfig, split: str, subsets: tuple[str, ...]) -> LoadedSplit:
    """Return the training mixture or the test items of `subsets`, in the order of the files. Raises `DataError`."""
    if data.source == "hub":
        return _load_published(split, subsets)
    root = SAMPLE if data.source == "sample" else Path(data.dir or ".")
    return _load_folder(root / "commonsense", split, subsets, counted=data.source != "sample")


def _load_folder(folder: Path, split: str, subsets: tuple[str, ...], *, counted: bool) -> LoadedSplit:
    result = LoadedSplit([], {}, [])
    if split == "train" and exists(folder, f"{MIXTURE}.json"):
        _add(result, folder, f"{MIXTURE}.json", MIXTURE, split)
        _keep_subsets(result, subsets)
        return result
    for subset in subsets:
        name = f"{subset}/{split}.json"
        if subset == "hellaswag" and not exists(folder, name):
            if split == "train":
                result.notes.append("hellaswag: no training file, so its results are of a task not trained on")
                continue
            if exists(folder, "hellaswag/test_detagged.json"):
                name = "hellaswag/test_detagged.json"
                result.notes.append("hellaswag: test items without their markup (a little shorter and easier)")
        count = _add(result, folder, name, subset, split)
        published = PUBLISHED[subset][split == "test"]
        if counted and count != published:
            result.notes.append(f"{subset}: {count} of {published} published {split} items")
    if not result.examples:
        raise DataError(f"{folder}: no {split} items for {', '.join(subsets)}")
    return result


def _load_published(split: str, subsets: tuple[str, ...]) -> LoadedSplit:
    result = LoadedSplit([], {}, [])
    names = {subset: f"dataset/{subset}/test.json" for subset in subsets}
    if split == "train":
        names = {MIXTURE: f"ft-training_set/{MIXTURE}.json"}
    for owner, name in names.items():
        path = download(name)
        _add(result, path.parent, path.name, owner, split)
        result.files[name] = result.files.pop(path.name)
    if split == "train":
        _keep_subsets(result, subsets)
    return result


def download(name: str) -> Path:
    """Return the local copy of a published file, fetched once. Raises `DataError` without network or if it differs."""
    path = pinned_file(f"{ORIGIN}{REVISION}/{name}")
    raw = path.read_bytes()
    found = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
    windows = hashlib.sha256(raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")).hexdigest()
    if not (found.startswith(IDS[name][0]) or windows.startswith(IDS[name][1:] or ("no id",))):
        raise DataError(
            f"{path}: git blob id {found}, expected {IDS[name][0]} for {name} at {REVISION[:7]}; the download is "
            "damaged or the file was changed. Delete it and try again"
        )
    return path


def _add(result: LoadedSplit, folder: Path, name: str, owner: str, split: str) -> int:
    """Append a file's items; return how many it has."""
    values, digest = read_json_list(folder, name, FIELDS)
    result.files[name] = digest
    path = folder / name
    for number, value in enumerate(values, start=1):
        subset = _check_item(value, path, number, owner)
        result.examples.append(
            Example(
                identifier=f"{owner}/{split}/{number - 1}",
                subset=subset,
                fields={key: value[key] for key in FIELDS},
                references=(value["answer"],),
            )
        )
    if owner == MIXTURE and len(values) != PUBLISHED_MIXTURE:
        result.notes.append(f"{MIXTURE}: {len(values)} of {PUBLISHED_MIXTURE} published items")
    return len(values)


def _check_item(value: dict[str, Any], path: Path, number: int, owner: str) -> str:
    """Return the item's subset. Raises `DataError` for an item that is not in the published form."""
    if value["input"]:
        raise fail(
            path, "must be empty in commonsense data; move its text into 'instruction'", item=number, field="input"
        )
    try:
        item = parse(value["instruction"])
    except DataError as error:
        raise fail(path, str(error), item=number, field="instruction") from None
    if value["answer"] not in item.options:
        legal = ", ".join(item.options)
        raise fail(path, f"{value['answer']!r} is not one of the options {legal}", item=number, field="answer")
    subset = owner if owner != MIXTURE else _subset_of(value["instruction"], value["answer"])
    if read(subset, value["answer"]) != value["answer"]:
        raise fail(path, f"{value['answer']!r} is not an answer of {subset}", item=number, field="answer")
    return subset


def _subset_of(instruction: str, answer: str) -> str:
    """Return the subset of an item of the mixture, which does not name it. Its reading depends on the answer's word.

    Three answers are the form of Social IQa (and of eleven ARC items). ARC and OpenBookQA, whose items look the same,
    are both called ARC-Easy. Only the training split is assigned this way; no score depends on it.
    """
    for subset in ("boolq", "piqa", "hellaswag", "winogrande"):
        if read(subset, answer) == answer:
            return subset
    return "social_i_qa" if instruction.endswith("answer1/answer2/answer3") else "ARC-Easy"


def _keep_subsets(result: LoadedSplit, subsets: tuple[str, ...]) -> None:
    """Narrow a mixture to the chosen subsets, if not all are chosen."""
    if set(subsets) == set(SUBSETS):
        return
    kept = [example for example in result.examples if example.subset in subsets]
    result.notes.append(
        f"{MIXTURE}: {len(kept)} of {len(result.examples)} items kept for {', '.join(subsets)} (the file does not name "
        "an item's task: ARC and OpenBookQA are both called ARC-Easy)"
    )
    result.examples = kept
