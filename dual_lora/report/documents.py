"""Generated parts of README.md and docs/*.md: the numbers there come from records, like those of the tables.

<!-- table:NAME -->
(measured rows of the table, written by `run.py tables`)
<!-- /table -->

<!-- table:NAME columns=BLEU,val. loss,n,train s -->
(only these columns, without notes)
<!-- /table -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dual_lora.report import formats
from dual_lora.report.layout import TableView

_PART = re.compile(
    r"^<!-- table:(?P<name>\S+)(?P<columns> columns=[^>\n]+)? -->\n(?P<body>.*?)^<!-- /table -->$",
    re.MULTILINE | re.DOTALL,
)
_OPENING = re.compile(r"^<!-- table:\S.* -->$", re.MULTILINE)


class DocumentError(ValueError):
    """A document with a marker that cannot be filled; the message names the file and the legal names."""


def fill(text: str, tables: Mapping[str, TableView], where: str) -> str:
    """Return the document with every marked part made anew. Raises `DocumentError`."""

    def part(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in tables:
            raise DocumentError(f"{where}: table {name!r} does not exist. Legal: {', '.join(tables)}")
        if match["columns"]:
            columns = [word.strip() for word in match["columns"].removeprefix(" columns=").split(",")]
            try:
                body = formats.excerpt(tables[name], columns)
            except ValueError as error:
                raise DocumentError(f"{where}: {error}") from error
            return f"<!-- table:{name}{match['columns']} -->\n\n{body}\n<!-- /table -->"
        body = formats.markdown(tables[name], measured_only=True, heading=False).replace("\n## ", "\n### ")
        body = re.sub(r"\A## ", "### ", body)
        return f"<!-- table:{name} -->\n\n{body}\n<!-- /table -->"

    if len(_OPENING.findall(text)) != len(_PART.findall(text)):
        raise DocumentError(f"{where}: a part opened by <!-- table:NAME --> is not closed by <!-- /table -->")
    return _PART.sub(part, text)


def documents(root: Path) -> list[Path]:
    """Return the documents that may hold generated parts."""
    return [path for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if path.exists()]
