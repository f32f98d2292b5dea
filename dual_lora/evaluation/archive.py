"""A run's replies next to its record: one small file to commit, from which anyone who has the data scores it again.

`results/predictions/RUN_ID.jsonl.gz` has a line for each set of replies to the test items, in their order:
`{"predictions": "last.test.generate", "values": [REPLY, ...]}`. The record's `origin.predictions_sha256` says whether
they are the run's. Rankings and classes are not in it: the record itself has what each item says (`records.per_item`).
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dual_lora.config import ConfigError
from dual_lora.evaluation.prediction_lines import line, read_values, sha256
from dual_lora.records import UNREADABLE, per_item, replacing

logger = logging.getLogger(__name__)
LIMIT = 2**18  # bytes of an archive; 630 replies of two checkpoints, as E2E has them, take 8,000


def path(results: str | Path, run_id: str) -> Path:
    """Return where the replies of a run are kept for its readers."""
    return Path(results) / "predictions" / f"{run_id}.jsonl.gz"


def replies(record: Mapping[str, Any]) -> list[str]:
    """Return the names of the sets of replies to test items that a record was made from."""
    found = ((entry["checkpoint"], entry["split"], entry["scoring"]) for entry in record["scores"]["measurements"])
    return list(dict.fromkeys(per_item.predictions(*one) for one in found if one[1:] == ("test", "generate")))


def write(record: Mapping[str, Any], values: Mapping[str, Iterable[str]], path: Path) -> bool:
    """Write the replies of a finished run, name -> values in the items' order; return whether there is a file.

    The same replies give the same bytes. None is written, and the log says so, if it would have more than `LIMIT`
    bytes, or if the replies are not those that the record was made from.
    """
    texts = []
    for name in replies(record):
        held = list(values.get(name, ()))
        if sha256(line(index, value) for index, value in enumerate(held)) != _hash(record, name):
            logger.warning("%s: the replies that are here are not those of the record; no archive of them", name)
            return False
        texts.append(json.dumps({"predictions": name, "values": held}, ensure_ascii=False) + "\n")
    packed = gzip.compress("".join(texts).encode(), mtime=0)
    if not texts or len(packed) > LIMIT:
        if texts:
            logger.warning("no archive of the replies: %s bytes, more than %s", f"{len(packed):,}", f"{LIMIT:,}")
        return False
    with replacing(path) as part:
        part.write_bytes(packed)
    return True


def of_folder(record: Mapping[str, Any], predictions: Path) -> dict[str, list[Any]]:
    """Return name -> replies in the items' order, as a run's folder `predictions/` has them."""
    held = {name: read_values(predictions / f"{name}.jsonl") for name in replies(record)}
    return {name: [values[index] for index in sorted(values)] for name, values in held.items()}


def read(record: Mapping[str, Any], path: Path) -> dict[str, list[str]]:
    """Return name -> replies in the items' order. Raises `ConfigError` for a file that is not the record's."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode().rstrip("\n").split("\n")
        found = {held["predictions"]: list(held["values"]) for held in map(json.loads, lines)}
    except (OSError, EOFError, zlib.error, *UNREADABLE) as error:
        raise ConfigError(f"{path} cannot be read ({error}); restore it, or remove it") from None
    for name in replies(record):
        values = found.get(name, [])
        if sha256(line(index, value) for index, value in enumerate(values)) != _hash(record, name):
            raise ConfigError(f"{path} does not have the predictions that the record was made from ({name})")
    return found


def _hash(record: Mapping[str, Any], name: str) -> str | None:
    held: str | None = record["origin"].get("predictions_sha256", {}).get(name)
    return held
