"""WebNLG 2017 (Gardent et al.): texts for sets of DBpedia triples; ten categories are seen in training, five are not.

Local files are the JSON of the LoRA release. As there, texts that the annotators marked other than "good" are left out
(77 in training, 10 in development). The hub's Parquet copy (converted from the challenge's XML by the hub itself) has
no commit that could be checked when this was written, so its branch is named and its content is held to the hash of the
release's files: other content is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_lora.config import ConfigError, RunConfig, nearest
from dual_lora.metrics import nlg
from dual_lora.tasks import files, hub
from dual_lora.tasks.base import DataError, Split
from dual_lora.tasks.data_to_text import DataToText, Item, Loaded, Published, content_sha256, data_root
from dual_lora.tasks.triples import linearise, split_triple

FORMS = ("lora", "raw")
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
HUB = {"repository": "webnlg-challenge/web_nlg", "revision": "refs/convert/parquet"}
# Texts marked "good" and the distinct inputs they describe, of 18,102, 2,268 and 4,928 published texts.
PUBLISHED: dict[Split, Published] = {
    "train": Published(18025, 6888),
    "validation": Published(2258, 870),
    "test": Published(4928, 1862),
}
CONTENT_SHA256: dict[Split, str] = {
    "train": "9f6cfdd0d55c4ab8334a82f494c95653e929bac90e09c35bac34c0b6914fc5dd",
    "validation": "415e1d46e14ccc370d6d286fa38f4018abf3e264552044b4f2a2b7bb868c42b3",
    "test": "7e8c07ef55754574dddb76acbbdf5b931a7b8dcf61f92d6c99f813cf879a1bf2",
}
_FILES: dict[Split, str] = {"train": "train.json", "validation": "dev.json", "test": "test.json"}
_HUB_SPLITS: dict[Split, str] = {"train": "train", "validation": "dev", "test": "test"}


def build(config: RunConfig) -> DataToText:
    """Return the task. Raises `ConfigError` for an unknown form or metric, METEOR without Java, and `sample`."""
    form = checked_form(config)

    def read(split: Split) -> Loaded:
        return _read_hub(split) if config.data.source == "hub" else read_local(data_root(config) / "webnlg_2017", split)

    def scorer(
        predictions: Sequence[str], references: Sequence[Sequence[str]], chosen: Sequence[str]
    ) -> dict[str, float]:
        return nlg.score(predictions, references, metrics=chosen, form=form)  # type: ignore[arg-type]

    return DataToText(config, read=read, scorer=scorer, metrics=nlg.METRICS, published=PUBLISHED, form=form, hub=HUB)


def checked_form(config: RunConfig) -> str:
    """Return the protocol's reference form. Raises `ConfigError` if it is unknown, or there is no sample."""
    if config.data.source == "sample":
        raise ConfigError(f"data.source=sample: {config.task.name} has no sample; use hub or local, or task=e2e")
    form = config.protocol.reference_form
    if form not in FORMS:
        close = nearest(str(form), list(FORMS))
        raise ConfigError(f"protocol.reference_form={form!r}: legal are {', '.join(FORMS)}{close}")
    return form


def read_local(folder: Path, split: Split) -> Loaded:
    """Read `{"entries": [{"1": {category, lexicalisations, modifiedtripleset}}, ...]}`. `DataError` names the item."""
    name = _FILES[split]
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
    return Loaded(items, {"file": name, "sha256": digest})


def _objects(value: Mapping[str, Any], path: Path, number: int) -> list[Mapping[str, Any]]:
    triples: list[Mapping[str, Any]] = value["modifiedtripleset"]
    if not all(isinstance(triple, dict) for triple in triples):
        raise files.fail(path, "expected objects", item=number, field="modifiedtripleset")
    return triples


def _item(
    category: str, triples: Iterable[Sequence[Any]], texts: Iterable[tuple[Any, Any]], place: Path | str, number: int
) -> list[Item]:
    """Return the entry as an item, or nothing if none of its texts is good."""
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
    subset = "seen" if category in SEEN else "unseen"
    return [Item(source, tuple(good), subset, {"category": category})] if good else []


def _read_hub(split: Split) -> Loaded:
    file = f"webnlg_challenge_2017/{_HUB_SPLITS[split]}/0000.parquet"
    items: list[Item] = []
    for number, row in enumerate(hub.parquet_rows(HUB["repository"], HUB["revision"], file), start=1):
        lex = hub.column(row, "lex", file, number)
        triples = hub.column(row, "modified_triple_sets", file, number)["mtriple_set"][0]
        if lex["text"]:  # the challenge's test file has inputs without texts, too
            texts = zip(lex["comment"], lex["text"], strict=True)
            items += _item(hub.column(row, "category", file, number), map(split_triple, triples), texts, file, number)
    digest = content_sha256(items)
    if digest != CONTENT_SHA256[split]:
        raise DataError(
            f"{HUB['repository']}/{file}: its content (sha256 {digest}) is not that of the LoRA release's "
            f"{_FILES[split]} ({CONTENT_SHA256[split]}). Use data.source=local with those files (layout: docs/data.md)"
        )
    return Loaded(items, {**HUB, "content_sha256": digest})
