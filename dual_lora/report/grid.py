"""A table of Markdown, with pipes."""

from __future__ import annotations

from collections.abc import Iterable


def grid(sides: str, headings: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a table of Markdown. sides: where the text of each column is, as in LaTeX, `l` or `r`."""
    rule = ["---:" if side == "r" else "---" for side in sides]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (headings, rule, *rows))
