"""E2E NLG (Novikova et al. 2017): restaurant descriptions from meaning representations (MRs).

Two forms of the same 51,426 pairs, never mixed (the scores of one output differ by 2.4 BLEU between them):

- `lora`: the text files of the LoRA release, `context||tokenized reference`;
- `official`: the CSV files of the challenge, raw references.

Inputs are the LoRA form's contexts in both; `linearise` makes them from an MR, exactly as in all 51,426 lines of the
release. From the hub, `lora` is the release's own repository, `official` the hub's copy of the CSV files. The sample is
in the official form; under `lora` its references are tokenized by `tokenize_reference`, which gives the release's own
text for 98 % of its lines (it splits "isn't" as the release does in its test file; the release's own training file
splits it differently), and the notes say so.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dual_lora.config import RunConfig, legal_values
from dual_lora.metrics import e2e, java, mteval
from dual_lora.tasks import downloads, files
from dual_lora.tasks.base import Split
from dual_lora.tasks.data_to_text import (
    DataToText,
    Entries,
    Entry,
    Origin,
    Size,
    chosen_metrics,
    content_sha256,
    data_root,
    reference_form,
)

FORMS = ("lora", "official")
RELEASE = {"repository": "github.com/microsoft/LoRA", "revision": downloads.RELEASE_REVISION}
HUB = {"repository": "tuetschek/e2e_nlg", "revision": "a1fd8dcb2b81207ecc5b7fd886f78fcee959eebc"}
PUBLISHED: dict[Split, Size] = {
    "train": Size(42061, 4862),
    "validation": Size(4672, 547),
    "test": Size(4693, 630),
}
_LORA_FILES: dict[Split, str] = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
_OFFICIAL_FILES: dict[Split, str] = {
    "train": "trainset.csv",
    "validation": "devset.csv",
    "test": "testset_w_refs.csv",
}
# The release's names of the MR's attributes; the others keep their own.
_ATTRIBUTES = {
    "name": "name",
    "eatType": "Type",
    "food": "food",
    "priceRange": "price",
    "customer rating": "customer rating",
    "area": "area",
    "familyFriendly": "family friendly",
    "near": "near",
}
_PYTHON_NIST = "NIST_python"
METRICS = (*e2e.METRICS, _PYTHON_NIST)


def build(config: RunConfig) -> DataToText:
    """Return the task. Raises `ConfigError` for an unknown form or metric, and for METEOR without Java."""
    form = reference_form(config, FORMS)
    source = config.data.source
    root = data_root(config)
    notes = []
    if form == "lora" and source == "sample":
        notes.append("references tokenized by rule from the official form, not the LoRA release's own files")

    if not java.available() and {"ROUGE_L", "CIDEr"} & set(chosen_metrics(config, METRICS)):
        notes.append("no Java: ROUGE_L and CIDEr of texts tokenized by nltk (dual_lora/metrics/coco.py)")

    def read(split: Split) -> Entries:
        if form == "lora" and source == "hub":
            path, _ = downloads.release_file(f"e2e/{_LORA_FILES[split]}")
            return read_lora(path.parent, path.name)
        if form == "lora" and source == "local":
            return read_lora(root / "e2e" / "lora_format", _LORA_FILES[split])
        loaded = _read_hub(split) if source == "hub" else read_official(root / "e2e" / "official", split)
        return _tokenized(loaded) if form == "lora" else loaded

    return DataToText(
        config,
        read=read,
        scorer=_score,
        metrics=METRICS,
        published=PUBLISHED,
        origin=Origin(form, RELEASE if form == "lora" else HUB),
        notes=notes,
        per_item=lambda predictions, references: {"BLEU": mteval.bleu_counts(predictions, references)},
    )


def _score(predictions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]) -> dict[str, float]:
    """Score as the official scorer does, and add NIST of its Python option, which the LoRA release publishes."""
    official = [metric for metric in metrics if metric in e2e.METRICS]
    scores = e2e.score(predictions, references, metrics=official) if official else {}
    if _PYTHON_NIST in metrics:
        scores[_PYTHON_NIST] = e2e.score(predictions, references, metrics=["NIST"], variant="python")["NIST"]
    return scores


def read_lora(folder: Path, name: str) -> Entries:
    """Read `context||reference` lines. Raises `DataError` naming the line."""
    lines, digest = files.open_lines(folder, name)
    items = []
    for number, line in enumerate(lines, start=1):
        parts = line.split("||")
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise files.fail(folder / name, f"expected 'context||reference', found {line!r:.80}", line=number)
        context, reference = (part.strip() for part in parts)
        for attribute in context.split(" | "):
            key, _, value = attribute.partition(" : ")
            if key not in _ATTRIBUTES.values() or not value:
                raise files.fail(
                    folder / name,
                    f"malformed context: {attribute!r} is not 'attribute : value' with one of "
                    f"{', '.join(_ATTRIBUTES.values())}",
                    line=number,
                )
        items.append(Entry(context, (reference,), "e2e"))
    return Entries(items, {"file": name, "sha256": digest})


def read_official(folder: Path, split: Split) -> Entries:
    """Read the columns `mr` and `ref` of a CSV. Raises `DataError` naming the line and column."""
    name = _OFFICIAL_FILES[split]
    rows, digest = files.read_csv(folder, name, ("mr", "ref"))
    items = []
    line = 2
    for row in rows:
        try:
            items.append(_item(row["mr"], row["ref"]))
        except ValueError as error:
            raise files.fail(
                folder / name, str(error), line=line, field="mr" if row["ref"].strip() else "ref"
            ) from None
        line += 1 + sum(cell.count("\n") for cell in row.values())
    return Entries(items, {"file": name, "sha256": digest})


def _read_hub(split: Split) -> Entries:
    file = f"default/{split}/0000.parquet"
    items = []
    for number, row in enumerate(downloads.parquet_rows(HUB["repository"], HUB["revision"], file), start=1):
        mr = downloads.column(row, "meaning_representation", file, number)
        reference = downloads.column(row, "human_reference", file, number)
        try:
            items.append(_item(mr, reference))
        except ValueError as error:
            raise files.fail(file, str(error), item=number) from None
    return Entries(items, {**HUB, "content_sha256": content_sha256(items)})


def _item(mr: str, reference: str) -> Entry:
    text = " ".join(reference.split())
    if not text:
        raise ValueError("the reference is empty; each row needs one")
    return Entry(linearise(mr), (text,), "e2e", {"mr": mr})


def _tokenized(loaded: Entries) -> Entries:
    items = [replace(item, references=tuple(map(tokenize_reference, item.references))) for item in loaded.items]
    return replace(loaded, items=items)


@functools.lru_cache(maxsize=100_000)  # of 51,426 rows 6,039 are different
def linearise(mr: str) -> str:
    """Return an MR, "name[Blue Spice], area[riverside]", in the LoRA form: "name : Blue Spice | area : riverside".

    Raises `ValueError` for a malformed MR or an attribute that E2E does not have.
    """
    parts = []
    for attribute in re.split(r"(?<=\])\s*,\s*", mr.strip()):
        found = re.fullmatch(r"([^\[\]]+)\[([^\[\]]+)\]", attribute)
        if found is None:
            raise ValueError(f"malformed MR {mr!r:.100}: {attribute!r} is not attribute[value]")
        key, value = found[1].strip(), found[2].strip()
        if key not in _ATTRIBUTES:
            raise ValueError(f"malformed MR: unknown attribute {key!r}{legal_values(key, _ATTRIBUTES)}")
        value = re.sub(r"£(?=\d)", "£ ", value)
        parts.append(f"{_ATTRIBUTES[key]} : {re.sub(r'(?<=[0-9])-(?=[0-9])', ' - ', value)}")
    return " | ".join(parts)


def tokenize_reference(text: str) -> str:
    """Return a raw reference with its tokens separated, nearly as in the LoRA release's files."""
    text = re.sub(r"-(?=£)", "- ", text)
    text = re.sub(r"£(?=\d)", "£ ", text)
    text = re.sub(r"(?<=\w)-(?=\w)", " - ", text)
    text = re.sub(r"n't\b", " n't", text)
    text = re.sub(r"'(s|re|ve|ll|d|m)\b", r" '\1", text)
    text = re.sub(r"([,;:!?])(?!\d)", r" \1 ", text)
    text = re.sub(r"\.(?=\s|$)", " .", text)
    return " ".join(text.split())
