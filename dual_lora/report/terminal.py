"""What commands print: a console that takes every text as it is, and tables that fit its width."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod
from rich.table import Table
from rich.text import Text

from dual_lora.report import escape

_FILE_WIDTH = 120  # columns in a file or a pipe
_BORDER = 3  # columns that a cell takes besides its text


def console(*, stderr: bool = False) -> Console:
    """Return a console that reads no markup in what it prints. It is as wide as the terminal, or as COLUMNS says."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def name_refused(records: Sequence[str]) -> int:
    """Say of each record that cannot be used why, and return the exit code: 2 if there is one."""
    for text in records:
        print(f"refused: {text}", file=sys.stderr)
    return 2 if records else 0


@dataclass(frozen=True)
class FittedTable:
    """A table of any width: columns that do not fit are in further tables below, each with the first `keys` columns.

    Cells of the key columns are set left, others right.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    title: str = ""
    keys: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        rows = [[_cell(text) for text in row] for row in self.rows]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(self.headings)
        widths = [_width(heading, cells) for heading, cells in zip(self.headings, columns, strict=True)]
        for number, chosen in enumerate(self._parts(widths, options.max_width)):
            table = Table(title=escape.terminal(self.title) if number == 0 else None, title_justify="left")
            fits = sum(widths[column] for column in chosen) < options.max_width
            for column in chosen:
                justify: JustifyMethod = "left" if column < self.keys else "right"
                table.add_column(self.headings[column], justify=justify, overflow="fold", no_wrap=fits)
            if rows and fits:  # a cell a line each, so a column can be one cell, which rich sets three times as fast
                table.add_row(*(Text("\n").join(columns[column]) for column in chosen))
            else:
                for row in rows:
                    table.add_row(*(row[column] for column in chosen))
            yield table

    def _parts(self, widths: Sequence[int], width: int) -> list[list[int]]:
        """Return the columns of each table: as many as fit, at least one besides the keys."""
        keys = list(range(self.keys))
        parts = [list(keys)]
        for column in range(self.keys, len(self.headings)):
            if sum(widths[other] for other in [*parts[-1], column]) > width - 1 and len(parts[-1]) > self.keys:
                parts.append(list(keys))
            parts[-1].append(column)
        return parts


def _width(heading: str, cells: Sequence[Text]) -> int:
    return max(map(cell_len, [*heading.splitlines(), *(cell.plain for cell in cells)]), default=0) + _BORDER


def _cell(text: str | Text) -> Text:
    return text if isinstance(text, Text) else Text(escape.terminal(text))
