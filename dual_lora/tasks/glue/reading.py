"""Reading GLUE: the tsv files of the GLUE download (also the shipped sample) and the hub's copy.

The tsv files are: UTF-8, some with a byte-order mark, tab between fields, **no quoting** (a field may
begin with a quotation mark that is never closed), a header line except in CoLA, columns found by name since MNLI's
train and dev files differ in theirs, blanks at the ends of fields kept, U+2028 and the like inside texts.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dual_lora.config import nearest
from dual_lora.tasks import downloads, files
from dual_lora.tasks.base import Example
from dual_lora.tasks.glue.specs import HUB_REPOSITORY, HUB_REVISION, Spec


def read_tsv(folder: Path, spec: Spec, file: str, subset: str) -> tuple[list[Example], dict[str, Any]]:
    """Return the items of FILE.tsv or FILE.tsv.gz and what identifies it: sha256, items, rows left out.

    Raises `DataError` with file and line for a row with another number of fields than the header, an unknown label, or
    a regression target that is not a number from 0 to 5; with file and field for a missing column.

    Only in QQP: its published train file has rows that are split by line breaks inside questions; the hub's copy leaves
    them out. They are left out here too if exactly the published number of items remains, and refused otherwise.
    """
    name = f"{file}.tsv"
    path = folder / name
    lines, digest = files.open_lines(folder, name)
    rows = [line.split("\t") for line in lines]
    header, first_line = (list(spec.columns), 1) if spec.columns else (rows.pop(0), 2)
    places = _columns(path, spec, header)
    torn = [position for position, row in enumerate(rows) if len(row) != len(header)]
    if torn and not (spec.name == "qqp" and len(rows) - len(torn) == spec.published.get(file)):
        raise files.fail(
            path,
            f"{len(rows[torn[0]])} tab-separated fields, expected {len(header)} ({', '.join(header)}); "
            "fields are not quoted, so a text can have neither a tab nor a line break",
            line=torn[0] + first_line,
        )
    skipped = set(torn)
    examples = []
    for position, row in enumerate(rows):
        if position in skipped:
            continue
        target = check_target(spec, row[places[-1]], path, line=position + first_line)
        texts = {column: row[place] for column, place in zip(spec.hub_texts, places, strict=False)}
        examples.append(_example(spec, f"{file}/{position}", subset, texts, target))
    if not examples:
        raise files.fail(path, "no rows after the header; a split needs at least one example")
    return examples, {"sha256": digest, "items": len(examples), **({"left_out": len(torn)} if torn else {})}


def _columns(path: Path, spec: Spec, header: list[str]) -> list[int]:
    """Return the positions of the text columns and, last, of the target. Letter case and outer blanks do not matter."""
    known = [column.strip().lower() for column in header]
    places = []
    for column in (*spec.texts, spec.target):
        if column.lower() not in known:
            close = nearest(column, header)
            raise files.fail(
                path, f"the header has no such column; it has {', '.join(header)}{close}", line=1, field=column
            )
        places.append(known.index(column.lower()))
    return places


def check_target(spec: Spec, word: str, path: Path | str, *, line: int | None = None, item: int | None = None) -> str:
    """Return the target as the references hold it. Raises `DataError`."""
    if spec.labels:
        if word not in spec.labels:
            legal = ", ".join(spec.labels)
            raise files.fail(path, f"unknown label {word!r}; legal: {legal}", line=line, item=item, field=spec.target)
        return word
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 5:
        message = f"{word!r} is not a number from 0 to 5, as this regression target has to be"
        raise files.fail(path, message, line=line, item=item, field=spec.target)
    return repr(number)


def _example(spec: Spec, place: str, subset: str, texts: dict[str, str], target: str) -> Example:
    return Example(
        identifier=f"{spec.name}/{place}", subset=subset, fields={**texts, "label": target}, references=(target,)
    )


def read_hub(spec: Spec, split: str, subset: str) -> tuple[list[Example], dict[str, Any]]:
    """Return the items of a split (train, validation, validation_matched, …) of the hub's pinned copy.

    Raises `DataError`: no network, or a hidden label.
    """
    rows = downloads.parquet_rows(HUB_REPOSITORY, HUB_REVISION, f"{spec.name}/{split}-00000-of-00001.parquet")
    place = f"{HUB_REPOSITORY}/{spec.name}/{split}"
    examples = []
    for position, row in enumerate(rows):
        word = downloads.column(row, "label", place, position + 1)
        if spec.labels:
            if word not in range(len(spec.labels)):
                raise files.fail(place, f"label {word!r} is hidden or unknown", item=position + 1, field="label")
            word = spec.labels[word]
        else:
            word = round(word, 3)  # the hub keeps 3.8 as the float32 3.799999952; the files have three decimals
        target = check_target(spec, str(word), place, item=position + 1)
        texts = {name: downloads.column(row, name, place, position + 1) for name in spec.hub_texts}
        examples.append(_example(spec, f"{split}/{position}", subset, texts, target))
    return examples, {"items": len(examples)}
