"""Reading records as evidence: a file that is not as a run wrote it is refused by name, and nothing is repaired.

What shows it: the run id, which is the hash of the identity; the headline, which a measurement holds; the checksum over
all of the record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dual_lora.records.schema import CHECKED_SINCE, RecordError, parse, upgraded
from dual_lora.records.storage import digest

# Only for display: renaming a label must not orphan the records made under the old one.
_LABELS = ("label",)
_UNTRAINED = ("recipe", "seed")  # without effect on a run that trains nothing
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


def read(path: Path) -> dict[str, Any] | None:
    """Return a record in the current schema, or None if there is none.

    Raises `RecordError` naming a file that is damaged, or that is not as a run wrote it.
    """
    values = _loaded(path)
    return None if values is None else upgraded(_as_written(values, path), str(path))


def read_folder(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records in these files, in their order, and why each of the others is refused."""
    found, refused = [], []
    for path in paths:
        try:
            record = read(path)
        except RecordError as error:
            refused.append(str(error))
        else:
            found += [record] if record is not None else []
    return found, refused


def _loaded(path: Path) -> dict[str, Any] | None:
    if path.exists() and not path.is_file():
        raise RecordError(f"{path} is no regular file; {_MOVE}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}); make it readable") from None
    except RecursionError:
        raise RecordError(f"{path} is damaged (nested too deeply); {_MOVE}") from None
    except ValueError as error:
        raise RecordError(f"{path} is damaged ({error}); {_MOVE}") from None
    if not isinstance(values, dict):
        raise RecordError(f"{path} is damaged (not a JSON object); {_MOVE}")
    return values


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _as_written(values: dict[str, Any], path: Path) -> dict[str, Any]:
    parse(values, str(path))
    named, computed = str(values["identity"]["run_id"]), run_id(values["identity"])
    if not path.stem == named == computed:
        raise RecordError(
            f"{path}: it says it is of run {named}, but its settings are those of run {computed}; restore the file, or "
            f"{_MOVE}"
        )
    try:
        held = checksum(values)
    except ValueError:
        raise RecordError(f"{path}: a number in it is out of range; {_MOVE}") from None
    if values["schema"] >= CHECKED_SINCE and values.get("checksum") != held:
        raise RecordError(
            f"{path}: changed after the run wrote it (its checksum is {values.get('checksum')}, that of its content "
            f"{held}); restore the file, or {_MOVE}"
        )
    return values
