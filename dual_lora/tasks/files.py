"""Reading data files: NAME or NAME.gz in a folder, with errors that name file, line or item, and field.

read_text(folder, name) -> (text, sha256)             # sha256 of the decompressed bytes, so .gz and plain agree
open_lines(folder, name) -> (list of lines, sha256)   # line ends removed, "\\n" and "\\r\\n" alike
read_json_list(folder, name, fields={"answer": str}) -> (list of dicts, sha256)
read_csv(folder, name, columns=("mr", "ref")) -> (list of dicts, sha256)
exists(folder, name) -> bool
fail(path, message, line=None, item=None, field=None) -> DataError to raise
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_lora.config import DataError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # two of them, as JSON writes a character beyond U+FFFF


def fail(
    path: Path | str, message: str, *, line: int | None = None, item: int | None = None, field: str | None = None
) -> DataError:
    """Return the error to raise about a place in a file; `line` and `item` count from 1."""
    place = str(path)
    if line is not None:
        place += f", line {line}"
    if item is not None:
        place += f", item {item}"
    if field is not None:
        place += f", field {field!r}"
    return DataError(f"{place}: {message}")


def _locate(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / (name + ".gz")):
        if candidate.is_file():
            return candidate
    return None


def exists(folder: str | Path, name: str) -> bool:
    """Whether NAME or NAME.gz is in the folder."""
    return _locate(Path(folder), name) is not None


def read_text(folder: str | Path, name: str) -> tuple[str, str]:
    """Return a file's text (UTF-8, a byte-order mark removed) and the sha256 of its decompressed bytes.

    Raises `DataError` if neither NAME nor NAME.gz is there, the gzip stream is damaged, or the bytes are not UTF-8.
    """
    raw, path = read_bytes(folder, name), _locate(Path(folder), name)
    assert path is not None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise fail(path, f"not UTF-8 (byte {error.start}: {error.reason}); convert the file", line=line) from None
    return text, hashlib.sha256(raw).hexdigest()


def read_bytes(folder: str | Path, name: str) -> bytes:
    """Return a file's content, decompressed. Raises `DataError` as `read_text` does."""
    folder = Path(folder)
    path = _locate(folder, name)
    if path is None:
        hint = "" if folder.is_dir() else f" (the folder {folder} does not exist)"
        raise DataError(
            f"{folder / name}: neither this file nor {Path(name).name}.gz was found{hint}; "
            "set data.dir to a folder laid out as docs/data.md says, or use data.source=sample"
        )
    raw = path.read_bytes()
    if path.suffix == ".gz" and not name.endswith(".gz"):
        try:
            raw = gzip.decompress(raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise fail(path, f"the gzip stream is damaged or truncated ({error}); fetch the file again") from None
    return raw


def open_lines(folder: str | Path, name: str) -> tuple[list[str], str]:
    """Return a file's lines without their ends, and its sha256. Only "\\n" and "\\r\\n" end a line.

    `str.splitlines` would also split at characters such as U+2028, which occur inside real examples.
    """
    text, digest = read_text(folder, name)
    lines = text.replace("\r\n", "\n").split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    if not lines:
        raise fail(Path(folder) / name, "the file is empty; a split needs at least one example")
    return lines, digest


def read_json(folder: str | Path, name: str) -> tuple[Any, str]:
    """Return the parsed JSON of a file and its sha256. Raises `DataError` with line and column of a syntax error."""
    text, digest = read_text(folder, name)
    try:
        values = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(values, ensure_ascii=False).encode()
        return values, digest
    except UnicodeEncodeError as error:
        before = error.object[max(0, error.start - 30) : error.start]
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise fail(
            Path(folder) / name,
            f"after {before!r}: {half} is half of a character, which no tokenizer takes; mend the text",
        ) from None
    except RecursionError:
        raise fail(Path(folder) / name, "nested too deeply; the file is damaged: fetch it again") from None
    except json.JSONDecodeError as error:
        raise fail(
            Path(folder) / name,
            f"not valid JSON at column {error.colno} ({error.msg}); the file may be truncated: fetch it again",
            line=error.lineno,
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise fail(Path(folder) / name, f"{error}; the file is damaged: fetch it again") from None


def read_json_list(
    folder: str | Path, name: str, fields: Mapping[str, type | tuple[type, ...]]
) -> tuple[list[dict[str, Any]], str]:
    """Return a JSON list of objects that all have `fields` with these types, and the file's sha256."""
    values, digest = read_json(folder, name)
    path = Path(folder) / name
    if not isinstance(values, list):
        raise fail(path, f"expected a JSON list of objects, found {type(values).__name__}")
    if not values:
        raise fail(path, "the list is empty; a split needs at least one example")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise fail(path, f"expected an object, found {type(value).__name__}", item=number)
        check_fields(value, fields, path, item=number)
    return values, digest


def check_fields(
    value: Mapping[str, Any], fields: Mapping[str, type | tuple[type, ...]], path: Path | str, *, item: int
) -> None:
    """Raise `DataError` unless the object has every field, of the right type."""
    for field, kind in fields.items():
        if field not in value:
            raise fail(path, f"missing; the object has {', '.join(sorted(map(str, value)))}", item=item, field=field)
        if not isinstance(value[field], kind):
            wanted = kind.__name__ if isinstance(kind, type) else " or ".join(one.__name__ for one in kind)
            found = value[field]
            raise fail(path, f"expected {wanted}, found {type(found).__name__} ({found!r:.60})", item=item, field=field)


def read_csv(folder: str | Path, name: str, columns: Sequence[str]) -> tuple[list[dict[str, str]], str]:
    """Return the rows of a CSV with a header as dictionaries, and the file's sha256.

    Raises `DataError` if a column is missing or a row and the header have different numbers of cells.
    """
    text, digest = read_text(folder, name)
    path = Path(folder) / name
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, str]] = []
    try:
        header = next(reader, [])
        for column in columns:
            if column not in header:
                raise fail(path, f"the header has no such column; it has {', '.join(header)}", line=1, field=column)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise fail(path, f"{len(cells)} cells, but the header has {len(header)}", line=reader.line_num)
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise fail(path, f"not valid CSV ({error}); the file may be truncated", line=reader.line_num) from None
    if not rows:
        raise fail(path, "no rows after the header; a split needs at least one example")
    return rows, digest
