"""Reading records as evidence: a file that is not as a run wrote it is refused by name, and nothing is repaired.

What shows it: the run id, which is the hash of the identity; the headline, which a measurement holds; the checksum over
all of the record.

A record is a file of its own, RUN_ID.json, or a line of a file of many, NAME.jsonl (`writing.pack`). If it is in both,
its own file holds, since a run that is done or scored again writes that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from dual_lora.records.schema import CHECKED_SINCE, Record, RecordError, parse, upgraded
from dual_lora.records.storage import UNREADABLE, digest

# Only for display: renaming a label must not orphan the records made under the old one.
_LABELS = ("label",)
_UNTRAINED = ("recipe", "seed")  # without effect on a run that trains nothing
Kept = TypeVar("Kept")  # a record, as values or typed
_MOVE = "move it away and give the run's command again"


def run_id(identity: Mapping[str, Any]) -> str:
    """Return the name of a run (16 hexadecimal digits): the hash of all that can change a number."""
    untrained = identity["method"]["trains"] == "nothing"
    hashed: dict[str, Any] = {}
    for key, value in identity.items():
        if key == "run_id" or (untrained and key in _UNTRAINED):
            continue
        if isinstance(value, Mapping):
            own = (*_LABELS, "hash") if key == "protocol" else _LABELS  # the protocol's hash is made of the rest
            value = {name: item for name, item in value.items() if name not in own}
        hashed[key] = value
    return digest(hashed, 16)


def checksum(record: Mapping[str, Any]) -> str:
    """Return the hash of a record's content. Raises `ValueError` for a number that is not finite."""
    return digest({key: value for key, value in record.items() if key != "checksum"}, 32)


def files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold records, by name, those of many (`.jsonl`) last."""
    return sorted((path for path in folder.glob("*.json*") if path.suffix in (".json", ".jsonl")), key=_own_first)


def read(path: Path) -> dict[str, Any] | None:
    """Return the record of the run that `path` (FOLDER/RUN_ID.json) is named after, or None if there is none.

    Raises `RecordError` naming a file that is damaged, or that is not as a run wrote it.
    """
    values = loaded(path)
    if values is not None:
        _checked(values, path.stem, str(path))
        return upgraded(values, str(path))
    found = _among_many(path)
    return None if found is None else of_line(*found[1:])


def file_of(path: Path) -> Path | None:
    """Return the file that holds the record of the run that `path` (FOLDER/RUN_ID.json) is named after, if any."""
    if path.is_file():
        return path
    found = _among_many(path)
    return None if found is None else found[0]


def read_each(
    paths: Iterable[Path], keep: Callable[[Record], Record] = lambda record: record
) -> tuple[dict[Path, list[Record]], list[str]]:
    """Return the records of each of these files, typed, as `keep` gives them, and why each of the others is refused."""
    return _read_each(paths, lambda values, record: keep(record))


def read_folder(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records of a folder by run id, and why each of the others is refused."""
    held, refused = _read_each(files(folder), lambda values, record: upgraded(values))
    return by_run(held, lambda values: str(values["identity"]["run_id"])), refused


def by_run(held: Mapping[Path, Iterable[Kept]], run: Callable[[Kept], str]) -> list[Kept]:
    """Return one record of each run, by run id: of several the one in a file of its own, or else the first."""
    found: dict[str, Kept] = {}
    for path in sorted(held, key=_own_first):
        for record in held[path]:
            found.setdefault(run(record), record)
    return [found[name] for name in sorted(found)]


def lines(path: Path) -> list[tuple[bytes, str]]:
    """Return the lines of a file of many, and where each is. Raises `RecordError` if it cannot be read."""
    with suppress(FileNotFoundError):
        content = enumerate(_content(path).split(b"\n"), 1)
        return [(line, f"{path}, line {number}") for number, line in content if line.strip()]
    return []


def of_line(content: bytes, place: str) -> dict[str, Any]:
    """Return the record in a line of a file of many. Raises `RecordError` naming the place."""
    values = _parsed(content, place)
    _checked(values, None, place)
    return upgraded(values, place)


def _own_first(path: Path) -> tuple[bool, str]:
    return path.suffix == ".jsonl", str(path)


def _read_each(
    paths: Iterable[Path], keep: Callable[[dict[str, Any], Record], Kept]
) -> tuple[dict[Path, list[Kept]], list[str]]:
    found: dict[Path, list[Kept]] = {}
    refused: list[str] = []
    for path in paths:
        try:
            parts = lines(path) if path.suffix == ".jsonl" else [(_content(path), str(path))]
        except FileNotFoundError:  # removed since the folder was listed
            continue
        except RecordError as error:
            refused.append(str(error))
            continue
        for content, place in parts:
            try:
                values = _parsed(content, place)
                record = _checked(values, path.stem if path.suffix == ".json" else None, place)
            except RecordError as error:
                refused.append(str(error))
            else:
                found.setdefault(path, []).append(keep(values, record))
    return found, refused


def _among_many(path: Path) -> tuple[Path, bytes, str] | None:
    """Return the file of many that holds a run, its line, and where that is."""
    for file in sorted(path.parent.glob("*.jsonl")):
        for content, place in lines(file):
            # Other lines can name the run too: as a start, or in a command.
            if path.stem.encode() in content and _named(content, path.stem):
                return file, content, place
    return None


def _named(content: bytes, run_id: str) -> bool:
    try:
        return bool(json.loads(content)["identity"]["run_id"] == run_id)
    except UNREADABLE:
        return False


def loaded(path: Path) -> dict[str, Any] | None:
    """Return what a file of one record holds, unchecked, or None if there is none. Raises `RecordError`."""
    try:
        return _parsed(_content(path), str(path))
    except FileNotFoundError:
        return None


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise RecordError(f"{path} is no regular file; {_MOVE}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}); make it readable") from None


def _parsed(content: bytes, place: str) -> dict[str, Any]:
    try:
        values = json.loads(content.decode(), parse_constant=_refuse)
    except RecursionError:
        raise RecordError(f"{place} is damaged (nested too deeply); {_MOVE}") from None
    except ValueError as error:
        raise RecordError(f"{place} is damaged ({error}); {_MOVE}") from None
    if not isinstance(values, dict):
        raise RecordError(f"{place} is damaged (not a JSON object); {_MOVE}")
    return values


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _checked(values: dict[str, Any], file_name: str | None, place: str) -> Record:
    """Return a record, typed. Raises `RecordError` if it is not as a run wrote it."""
    record = parse(values, place)
    named, computed = str(values["identity"]["run_id"]), run_id(values["identity"])
    if not (file_name or named) == named == computed:
        raise RecordError(
            f"{place}: it says it is of run {named}, but its settings are those of run {computed}; restore the file, "
            f"or {_MOVE}"
        )
    try:
        held = checksum(values)
    except ValueError:
        raise RecordError(f"{place}: a number in it is out of range; {_MOVE}") from None
    if values["schema"] >= CHECKED_SINCE and values.get("checksum") != held:
        raise RecordError(
            f"{place}: changed after the run wrote it (its checksum is {values.get('checksum')}, that of its content "
            f"{held}); restore the file, or {_MOVE}"
        )
    return record
