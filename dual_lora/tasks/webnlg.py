"""WebNLG 2017 (Gardent et al.): texts for sets of DBpedia triples; ten categories are seen in training, five are not.

The files are the JSON of the LoRA release, local or from its repository (`hub`). As there, texts that the annotators
marked other than "good" are left out (77 in training, 10 in development).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from dual_lora.config import ConfigError, RunConfig
from dual_lora.metrics import nlg
from dual_lora.tasks import downloads, files
from dual_lora.tasks.base import Split
from dual_lora.tasks.data_to_text import (
    DataToText,
    Entries,
    Entry,
    Origin,
    Size,
    data_root,
    linearise,
    reference_form,
)

FORMS = ("lora", "raw")
SUBSETS = ("seen", "unseen")
SEEN = (
    "Airport",
    "Astronaut",
    "Building",
    "City",
    "ComicsCharacter",
    "Food",
    "Monument",
    "SportsTeam",
    "University",
    "WrittenWork",
)
HUB = {"repository": "github.com/microsoft/LoRA", "revision": downloads.RELEASE_REVISION}
# Texts marked "good" and the distinct inputs they describe, of 18,102, 2,268 and 4,928 published texts.
PUBLISHED: dict[Split, Size] = {
    "train": Size(18025, 6888),
    "validation": Size(2258, 870),
    "test": Size(4928, 1862),
}
_FILES: dict[Split, str] = {"train": "train.json", "validation": "dev.json", "test": "test.json"}


def build(config: RunConfig) -> DataToText:
    """Return the task. Raises `ConfigError` for an unknown form or metric, METEOR without Java, and `sample`."""
    form = checked_form(config)

    def read(split: Split) -> Entries:
        if config.data.source != "hub":
            return read_entries(data_root(config) / "webnlg_2017", _FILES[split])
        path, _ = downloads.release_file(f"webnlg_challenge_2017/{_FILES[split]}")
        return read_entries(path.parent, path.name)

    scorer, origin = partial(nlg.score, form=form), Origin(form, HUB, subsets=SUBSETS)
    return DataToText(config, read=read, scorer=scorer, metrics=nlg.METRICS, published=PUBLISHED, origin=origin)


def checked_form(config: RunConfig) -> nlg.Form:
    """Return the protocol's reference form. Raises `ConfigError` if it is unknown, or there is no sample."""
    if config.data.source == "sample":
        raise ConfigError(f"data.source=sample: {config.task.name} has no sample; use hub or local, or task=e2e")
    return cast(nlg.Form, reference_form(config, FORMS))


def read_entries(folder: Path, name: str) -> Entries:
    """Read `{"entries": [{"1": {category, lexicalisations, modifiedtripleset}}, ...]}`. `DataError` names the item."""
    content, digest = files.read_json(folder, name)
    path = folder / name
    entries = content.get("entries") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise files.fail(path, "expected an object with a non-empty list", field="entries")
    items = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or len(entry) != 1 or not isinstance(next(iter(entry.values())), dict):
            raise files.fail(path, 'expected {"NUMBER": {...}}', item=number)
        (value,) = entry.values()
        fields = {"category": str, "lexicalisations": list, "modifiedtripleset": list}
        files.check_fields(value, fields, path, item=number)
        triples = [
            [triple.get(key) for key in ("subject", "property", "object")] for triple in _objects(value, path, number)
        ]
        texts = [(text.get("comment"), text.get("lex")) for text in value["lexicalisations"] if isinstance(text, dict)]
        items += _item(value["category"], triples, texts, path, number)
    return Entries(items, {"file": name, "sha256": digest})


def _objects(value: Mapping[str, Any], path: Path, number: int) -> list[Mapping[str, Any]]:
    triples: list[Mapping[str, Any]] = value["modifiedtripleset"]
    if not all(isinstance(triple, dict) for triple in triples):
        raise files.fail(path, "expected objects", item=number, field="modifiedtripleset")
    return triples


def _item(
    category: str, triples: Iterable[Sequence[Any]], texts: Iterable[tuple[Any, Any]], place: Path | str, number: int
) -> list[Entry]:
    """Return the entry as an item, or nothing if none of its texts is marked good."""
    try:
        source = linearise(triples)
    except ValueError as error:
        raise files.fail(place, str(error), item=number, field="modifiedtripleset") from None
    good = []
    for comment, text in texts:
        if not isinstance(text, str) or not text.strip():
            raise files.fail(place, f"expected a text, found {text!r:.60}", item=number, field="lex")
        if comment == "good":
            good.append(" ".join(text.split()))
    subset = SUBSETS[0] if category in SEEN else SUBSETS[1]
    return [Entry(source, tuple(good), subset, {"category": category})] if good else []
