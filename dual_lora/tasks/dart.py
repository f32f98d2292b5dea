"""DART v1.1.1 (Nan et al. 2021): texts for sets of triples from tables, WebNLG and E2E.

Local files: `dev.json`, `test.xml` and, optionally, `train.json`. If the local folder has no training split, that of
the hub's copy is used and the notes say so. Properties are lower-cased as in the LoRA release.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dual_lora.config import DataError, RunConfig
from dual_lora.metrics import nlg
from dual_lora.tasks import downloads, files
from dual_lora.tasks.base import Split
from dual_lora.tasks.data_to_text import (
    DataToText,
    Entries,
    Entry,
    Origin,
    Size,
    content_sha256,
    data_root,
    linearise,
    split_triple,
)
from dual_lora.tasks.webnlg import checked_form

HUB = {"repository": "Yale-LILY/dart", "revision": "111059ed9e5176e2f57f9128bc02913d5d31350a"}
PUBLISHED: dict[Split, Size] = {
    "train": Size(62659, None),
    "validation": Size(6980, 2721),
    "test": Size(12552, 4159),
}
_FILES: dict[Split, str] = {"train": "train.json", "validation": "dev.json", "test": "test.xml"}


def build(config: RunConfig) -> DataToText:
    """Return the task. Raises `ConfigError` for an unknown form or metric, METEOR without Java, and `sample`."""
    form = checked_form(config)
    folder = data_root(config) / "dart_v1.1.1_partial"
    local = config.data.source == "local"
    from_hub = local and not files.exists(folder, _FILES["train"])

    def read(split: Split) -> Entries:
        if not local:
            return _read_hub(split)
        if split == "train" and from_hub:
            return _train_from_hub()
        return read_test(folder) if split == "test" else read_json(folder, split)

    notes = ["the training split is the hub's copy: the local data has none"] if from_hub else []
    return DataToText(
        config,
        read=read,
        scorer=partial(nlg.score, form=form),
        metrics=nlg.METRICS,
        published=PUBLISHED,
        origin=Origin(form, HUB, ["train"] if from_hub else []),
        notes=notes,
    )


def _train_from_hub() -> Entries:
    try:
        return _read_hub("train")
    except DataError as error:
        raise DataError(
            f"DART's local data has no training split (train.json), and the hub's is not available. {error}"
        ) from None


def read_json(folder: Path, split: Split) -> Entries:
    """Read a list of {"tripleset": [[s, p, o], ...], "annotations": [{"text": ...}]}. `DataError` names the item."""
    name = _FILES[split]
    rows, digest = files.read_json_list(folder, name, {"tripleset": list, "annotations": list})
    items = []
    for number, row in enumerate(rows, start=1):
        texts = [text.get("text") if isinstance(text, dict) else None for text in row["annotations"]]
        items.append(_item(row["tripleset"], texts, folder / name, number))
    return Entries(items, {"file": name, "sha256": digest})


def read_test(folder: Path) -> Entries:
    """Read `<entry><modifiedtripleset><mtriple>s | p | o</mtriple>...<lex>text</lex></entry>`."""
    name = _FILES["test"]
    text, digest = files.read_text(folder, name)
    try:
        entries = list(ElementTree.fromstring(text.encode()).iter("entry"))
    except ElementTree.ParseError as error:
        line, column = error.position
        raise files.fail(
            folder / name, f"not valid XML at column {column} ({error.msg}); the file may be truncated", line=line
        ) from None
    items = []
    for number, entry in enumerate(entries, start=1):
        triples = [split_triple(triple.text or "") for triple in entry.iter("mtriple")]
        items.append(_item(triples, [lex.text for lex in entry.iter("lex")], folder / name, number))
    return Entries(items, {"file": name, "sha256": digest})


def _item(triples: Iterable[Any], texts: Sequence[Any], place: Path | str, number: int) -> Entry:
    try:
        source = linearise(_lowered(triple) for triple in triples)
    except ValueError as error:
        raise files.fail(place, str(error), item=number, field="tripleset") from None
    # The published test file has one empty text, next to another of the same entry: it is left out, as the count shows.
    given = [" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()]
    if not given:
        raise files.fail(place, "no text", item=number, field="annotations")
    return Entry(source, tuple(given), "dart")


def _lowered(triple: Any) -> list[Any]:
    if not isinstance(triple, list) or len(triple) != 3 or not isinstance(triple[1], str):
        raise ValueError(f"malformed triple {triple!r:.100}: a subject, a property and an object are needed")
    return [triple[0], triple[1].lower(), triple[2]]


def _read_hub(split: Split) -> Entries:
    file = f"default/{split}/0000.parquet"
    items = []
    for number, row in enumerate(downloads.parquet_rows(HUB["repository"], HUB["revision"], file), start=1):
        texts = downloads.column(row, "annotations", file, number)["text"]
        items.append(_item(downloads.column(row, "tripleset", file, number), texts, file, number))
    return Entries(items, {**HUB, "content_sha256": content_sha256(items)})
