"""Generated parts of README.md and docs/*.md: the numbers there come from records and measurements.

<!-- table:NAME -->
(measured rows of the table, written by `run.py tables`)
<!-- /table -->

<!-- table:NAME columns=BLEU,val. loss,n,train s -->
(only these columns, without notes)
<!-- /table -->

<!-- finding:NAME -->
(what the table's endpoint says, or how to run it; NAME may be headline or costs: `report.findings`)
<!-- /finding -->

<!-- benchmarks:NAME -->
(written by `run.py bench report`)
<!-- /benchmarks -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from dual_lora.config import legal_values
from dual_lora.report import formats
from dual_lora.report.findings import Findings
from dual_lora.report.layout import TableView


class DocumentError(ValueError):
    """A document with a marker that cannot be filled; the message names the file and the legal names."""


def fill(text: str, kind: str, render: Callable[[str, str | None], str], where: str) -> str:
    """Return the document with every part of one kind (`table`, `benchmarks`) replaced.

    Args:
        render: gives the Markdown of a part from its NAME and its columns (None: not stated). Its `ValueError` becomes
            a `DocumentError`, which is also raised for a part that is not closed.
    """
    opening = rf"^<!-- {kind}:(?P<name>\S+)(?: columns=(?P<columns>[^>\n]+))? -->"
    part = re.compile(rf"{opening}\n.*?^<!-- /{kind} -->$", re.MULTILINE | re.DOTALL)

    def filled(match: re.Match[str]) -> str:
        try:
            body = render(match["name"], match["columns"])
        except ValueError as error:
            raise DocumentError(f"{where}: {error}") from error
        return f"{match[0].partition(chr(10))[0]}\n\n{body.strip()}\n\n<!-- /{kind} -->"

    if len(re.findall(rf"^<!-- {kind}:\S.* -->$", text, re.MULTILINE)) != len(part.findall(text)):
        raise DocumentError(f"{where}: a part opened by <!-- {kind}:NAME --> is not closed by <!-- /{kind} -->")
    return part.sub(filled, text)


def fill_tables(text: str, tables: Mapping[str, TableView], where: str) -> str:
    """Return the document with every table replaced. Raises `DocumentError`, also for a table that does not exist."""

    def render(name: str, columns: str | None) -> str:
        if name not in tables:
            raise ValueError(f"table {name!r} does not exist{legal_values(name, tables)}")
        if columns:
            return formats.excerpt(tables[name], [word.strip() for word in columns.split(",")])
        body = formats.markdown(tables[name], measured_only=True, heading=False)
        return re.sub("^## ", "### ", body, flags=re.MULTILINE)

    return fill(text, "table", render, where)


def fill_findings(text: str, found: Findings, where: str) -> str:
    """Return the document with every finding replaced. Raises `DocumentError`, also for a table that does not exist."""
    linked = replace(found, root="../" * where.count("/"))
    return fill(text, "finding", linked.part, where)


def documents(root: Path) -> list[Path]:
    """Return the documents that may have generated parts."""
    return [path for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if path.exists()]
