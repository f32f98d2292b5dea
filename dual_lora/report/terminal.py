"""What commands print: a console that takes every text as it is, and tables that fit its width."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
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
        for number, columns in enumerate(self._parts(options.max_width)):
            table = Table(title=escape.terminal(self.title) if number == 0 else None, title_justify="left")
            for column in columns:
                left = column < self.keys
                table.add_column(self.headings[column], justify="left" if left else "right", overflow="fold")
            for row in self.rows:
                table.add_row(*(_cell(row[column]) for column in columns))
            yield table

    def _parts(self, width: int) -> list[list[int]]:
        """Return the columns of each table: as many as fit, at least one besides the keys."""
        keys = list(range(self.keys))
        parts, used = [list(keys)], self._width(keys)
        for column in range(self.keys, len(self.headings)):
            if used + self._width([column]) > width - 1 and len(parts[-1]) > self.keys:
                parts.append(list(keys))
                used = self._width(keys)
            parts[-1].append(column)
            used += self._width([column])
        return parts

    def _width(self, columns: Sequence[int]) -> int:
        return sum(max(map(cell_len, self._texts(column)), default=0) + _BORDER for column in columns)

    def _texts(self, column: int) -> list[str]:
        return [*self.headings[column].splitlines(), *(_cell(row[column]).plain for row in self.rows)]


def _cell(text: str | Text) -> Text:
    return text if isinstance(text, Text) else Text(escape.terminal(text))
