"""Writing a table as LaTeX (booktabs): floats that fit an A4 page in article's text block, and their notes.

A block that is too wide is continued in further floats with the same rows, one that is too long with further rows.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Sequence

from dual_lora.report import escape
from dual_lora.report.formats import Markup, line_texts
from dual_lora.report.layout import MARKS, BlockView, TableView

_LINE, _GAP, _FIRST = 345.0, 6.0, 130.0  # points: article's line on A4, twice \tabcolsep, a column of names
_ROWS = 40  # of a float, names that take two lines counted twice
# Widths in points of Computer Modern at \footnotesize, rounded up.
_WIDTHS = {
    **dict.fromkeys("ijltf.,:;'! ()[]", 3.4),
    **dict.fromkeys("mwMW±−+=<>×%@&", 8.8),
    **dict.fromkeys("ABCDEFGHIJKLNOPQRSTUVXYZ", 6.7),
}
_OTHER = 4.75

_LATEX = Markup(
    text=escape.latex,
    bold=lambda text: rf"\textbf{{{text}}}",
    raised=lambda marks: rf"\textsuperscript{{{','.join(marks)}}}" if marks else "",
)
_PLAIN = Markup(text=lambda text: text, bold=lambda text: f"{text} ", raised=lambda marks: ",".join(marks))


def latex(table: TableView) -> str:
    """Return `table*` environments and their notes for a document that loads booktabs."""
    label = re.sub("[^a-zA-Z0-9]+", "-", table.name)
    lines = [f"% {table.name}: made by run.py tables, do not edit"]
    for number, block in enumerate(table.blocks, start=1):
        floats = _floats(block)
        models = {line.model for line in block.lines}  # one alone has no column
        who = "".join(f", {model}" for model in models if len(models) == 1 and model not in block.heading)
        for place, (names, rows) in enumerate(floats, start=1):
            part = f" ({place} of {len(floats)})" if len(floats) > 1 else ""
            lines += [r"\begin{table*}", r"\centering\footnotesize\setlength{\tabcolsep}{3pt}"]
            lines.append(rf"\caption{{{escape.latex(f'{table.title}. {block.heading}{who}{part}')}}}")
            lines += [rf"\label{{tab:{label}-{number}}}"] if place == 1 else []
            lines += [*_tabular(names, rows), r"\end{table*}"]
        lines += ["", *_note(" ".join([block.legend, *block.findings])), ""]
    keys = [f"{mark}: {MARKS[mark]}" for mark in table.marks()]
    keys += [f"[{k}] {source}" for k, source in enumerate(table.sources, start=1)]
    return "\n".join([*lines, *_note("; ".join(keys))]) + "\n"


def _note(text: str) -> list[str]:
    return [r"\noindent{\footnotesize\raggedright", rf"{escape.latex(text)}\par}}"] if text else []


_Row = tuple[str, ...]


def _floats(block: BlockView) -> list[tuple[_Row, list[tuple[_Row, _Row]]]]:
    """Return the headings of each float and its rows, each as LaTeX and as plain text."""
    several = len({line.model for line in block.lines}) > 1
    headings = ["model", "method", *block.columns, "n", "rates", *block.cost_columns][0 if several else 1 :]
    rows = []
    for line in block.lines:
        both = []
        for markup in (_LATEX, _PLAIN):
            model, method, _, *rest = line_texts(line, block, markup)
            named = method if line.source is None else f"{method} [{line.source}]"
            both.append((model, named, *rest)[0 if several else 1 :])
        rows.append((both[0], both[1]))
    kept = 2 if several else 1  # the columns that every float repeats
    widths = [max(_width(text) for text in column) for column in zip(headings, *(row[1] for row in rows), strict=True)]
    names = sum(min(width, _names_width(rows, place)) + _GAP for place, width in enumerate(widths[:kept]))
    parts: list[list[int]] = []
    room = 0.0
    for place in range(kept, len(headings)):
        if widths[place] + _GAP > room:
            parts.append(list(range(kept)))
            room = _LINE - names
        parts[-1].append(place)
        room -= widths[place] + _GAP
    return [
        (
            tuple(headings[place] for place in part),
            [(tuple(latex[place] for place in part), tuple(plain[place] for place in part)) for latex, plain in page],
        )
        for part, page in itertools.product(parts, _pages(rows))
    ]


def _pages(rows: Sequence[tuple[_Row, _Row]]) -> list[list[tuple[_Row, _Row]]]:
    pages: list[list[tuple[_Row, _Row]]] = [[]]
    left = _ROWS
    for row in rows:
        takes = max(1 + int(_width(text) // _FIRST) for text in row[1][:2])
        if takes > left and pages[-1]:
            pages.append([])
            left = _ROWS
        pages[-1].append(row)
        left -= takes
    return pages


def _tabular(headings: _Row, rows: Sequence[tuple[_Row, _Row]]) -> list[str]:
    kinds, before = [], []
    for place, heading in enumerate(headings):
        named = heading in ("model", "method")
        wide = named and max((_width(row[1][place]) for row in rows), default=0) > _FIRST
        kinds.append(rf"p{{{_names_width(rows, place):.0f}pt}}" if wide else "l" if named else "r")
        before.append(r"\raggedright " if wide else "")
    return [
        rf"\begin{{tabular}}{{{''.join(kinds)}}}",
        r"\toprule",
        " & ".join(escape.latex(heading) for heading in headings) + r" \\",
        r"\midrule",
        *(" & ".join(map(operator.add, before, latex)) + r" \\" for latex, _ in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _names_width(rows: Sequence[tuple[_Row, _Row]], place: int) -> float:
    """Return the width of a column of names: what the widest word needs, at least `_FIRST`."""
    return max([_FIRST, *(_width(word) for row in rows for word in row[1][place].split())])


def _width(text: str) -> float:
    return sum(_WIDTHS.get(character, _OTHER) for character in text)
