"""Writing a table as Markdown and CSV, and on a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dual_lora.report import endpoint, escape, gpu_hours
from dual_lora.report.grid import grid
from dual_lora.report.layout import MARKS, BlockView, Cell, Line, TableView
from dual_lora.report.stats import Estimate
from dual_lora.report.terminal import FittedTable

CSV_COLUMNS: tuple[str, ...] = ("block", "model", "method", "origin", "column", "value", "sd", "low", "high", "n")
CSV_COLUMNS += ("difference", "difference_low", "difference_high", "pairs")
CSV_COLUMNS += ("p", "sign_flip_p", "equal_p", "blocked", "blocked_low", "blocked_high")  # of an endpoint
CSV_COLUMNS += ("item_sd", "item_sd_difference", "items_low", "items_high", "mcnemar_p", "verdict")
CSV_COLUMNS += ("bold", "marks", "status", "source", "runs")


@dataclass(frozen=True)
class Markup:
    """How a format writes text, bold numbers and marks."""

    text: Callable[[str], str]
    bold: Callable[[str], str]
    raised: Callable[[str], str]
    hours: Callable[[str], str] = lambda text: ""  # of a cell that is not run


def markdown(table: TableView, *, measured_only: bool = False, heading: bool = True) -> str:
    """Return the table as GitHub Markdown.

    `measured_only` leaves out published rows, rows without a record and the commands: for a README.
    """
    lines = [f"# {escape.markdown(table.title)}", ""] if heading else []
    if table.about and not measured_only:
        lines += [table.about, ""]
    shown = [_measured(block) for block in table.blocks] if measured_only else list(table.blocks)
    if not any(block.lines for block in shown):
        lines += ["Nothing measured yet.", ""]
    for block in shown:
        if block.lines:
            lines += _markdown_block(block, commands=not measured_only)
    marks = TableView(table.name, "", "", tuple(shown)).marks()
    lines += ["; ".join(f"<sup>{mark}</sup> {MARKS[mark]}" for mark in marks) + ".", ""] if marks else []
    if table.sources and not measured_only:
        sources = [f"{k}. {escape.markdown(source)}" for k, source in enumerate(table.sources, start=1)]
        lines += ["Sources:", "", *sources, ""]
    return "\n".join(lines).rstrip() + "\n"


def excerpt(table: TableView, columns: Sequence[str]) -> str:
    """Return the measured rows with some of the columns, which include costs and "n", as Markdown without notes.

    Of what the endpoint says of each method the tests are left out.
    Blocks without one of the columns are left out. Raises `ValueError` for a column that no measured block has.
    """
    blocks = [block for block in map(_measured, table.blocks) if block.lines]
    headings = [[*block.columns, "n", "rates tried", *block.cost_columns] for block in blocks]
    wanted = [(block, names) for block, names in zip(blocks, headings, strict=True) if set(columns) <= set(names)]
    if blocks and not wanted:
        raise ValueError(
            f"no measured block of table {table.name!r} has the columns {', '.join(columns)}. Legal: "
            + "; ".join(", ".join(names) for names in headings)
        )
    lines: list[str] = [] if wanted else ["Nothing measured yet.", ""]
    marks: set[str] = set()
    for block, names in wanted:
        who = ["model", "method"] if len({line.model for line in block.lines}) > 1 else ["method"]
        rows = []
        for line in block.lines:
            shown = dict(zip(names, line_texts(line, block, _MARKDOWN)[3:], strict=True))
            named = [escape.markdown(word) for word in (line.model, line.method)][-len(who) :]
            rows.append([*named, *(shown[column] for column in columns)])
            cells = dict(zip(block.columns, line.cells, strict=True))
            marks |= {mark for column in columns if column in cells for mark in cells[column].marks}
        sides = "l" * len(who) + "r" * len(columns)
        lines += [f"{escape.markdown(block.heading)}:", "", grid(sides, [*who, *columns], rows)]
        compared = sum(cell.comparison is not None for line in block.lines for cell in line.cells)
        said = [*map(endpoint.brief, block.findings[:compared]), *block.findings[compared:]]
        found = [f"- {escape.markdown(finding)}" for finding in said]
        lines += ["", *found, ""] if found else [""]
    lines += (
        ["; ".join(f"<sup>{mark}</sup> {text}" for mark, text in MARKS.items() if mark in marks) + "."] if marks else []
    )
    return "\n".join(lines).rstrip() + "\n"


def on_screen(table: TableView) -> list[FittedTable | str]:
    """Return what a terminal shows: the measured rows, what they are, and what the marks mean."""
    shown = [block for block in map(_measured, table.blocks) if block.lines]
    found: list[FittedTable | str] = [] if shown else [f"{escape.terminal(table.title)}: nothing measured yet"]
    for block in shown:
        headings = ["model", "method", *block.columns, "n", "rates tried", *block.cost_columns]
        rows = [line_texts(line, block, _TERMINAL) for line in block.lines]
        rows = [[model, method, *rest] for model, method, _, *rest in rows]
        found += [FittedTable(headings, rows, block.heading, keys=2)]
        found += [escape.terminal(text) for text in (block.legend, *block.findings)]
    marks = TableView(table.name, "", "", tuple(shown)).marks()
    return [*found, *("; ".join(f"{mark}: {MARKS[mark]}" for mark in marks) for _ in marks[:1])]


def tidy_csv(table: TableView) -> str:
    """Return one line per number, unrounded, for other programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for block in table.blocks:
        for line in block.lines:
            origin = "here" if line.source is None else "published"
            source = "" if line.source is None else table.sources[line.source - 1]
            for name, cell in zip(block.columns, line.cells, strict=True):
                if cell.empty:
                    continue
                who = [escape.csv(text) for text in (block.heading, line.model, line.method, origin, name)]
                writer.writerow(
                    [*who, *_digits(cell.value, cell.sd, cell.low, cell.high), cell.n or ""]
                    + _difference_digits(cell)
                    + ["yes" if cell.bold else "", line.marks + cell.marks, escape.csv(cell.word), escape.csv(source)]
                    + [" ".join(cell.runs)]
                )
    return out.getvalue()


def _difference_digits(cell: Cell) -> list[str]:
    """Return the CSV's fields of a cell's difference and of the endpoint's tests."""
    difference, tested = cell.difference, cell.comparison
    fields = _digits(*_limits(difference)) + [str(difference.n) if difference else ""]
    if tested is None:
        return [*fields, *[""] * 12]
    items = tested.items
    of_items = (items.one, items.pair, items.low, items.high, items.mcnemar) if items else (None,) * 5
    tests = _digits(tested.p, tested.sign_flip, tested.p_equal, *_limits(tested.blocked), *of_items)
    return [*fields, *tests, tested.verdict]


def _limits(found: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if found is None else (found.mean, *(found.interval() or (None, None)))


def _digits(*numbers: float | None) -> list[str]:
    return ["" if number is None else f"{number:.6g}" for number in numbers]


def _markdown_block(block: BlockView, *, commands: bool) -> list[str]:
    headings = ["model", "method", "from", *block.columns, "n", "rates tried", *block.cost_columns]
    rows = [line_texts(line, block, _MARKDOWN) for line in block.lines]
    lines = [f"## {escape.markdown(block.heading)}", "", grid("lll" + "r" * (len(headings) - 3), headings, rows)]
    took = f", {block.gpu_minutes:.1f} GPU minutes" if block.gpu_minutes else ""
    lines += ["", f"{block.legend} Done: {block.runs_done} of {block.runs_all} runs{took}.", ""]
    lines += _differences(block)
    lines += [*(f"- {escape.markdown(finding)}" for finding in block.findings), ""] if block.findings else []
    lines += [*(f"- {escape.markdown(note)}" for note in block.notes), ""] if block.notes else []
    for number, sample in enumerate(block.samples if commands else (), start=1):
        lines += ["Samples, from the first seed of each row:", ""] if number == 1 else []
        texts = [("a reference", sample.reference), *((row, text or "(nothing)") for row, text in sample.replies)]
        lines.append(f"{number}. {escape.markdown(sample.input)}")
        lines += [f"    - {escape.markdown(row)}: {escape.markdown(text)}" for row, text in texts]
    lines += [""] if block.samples and commands else []
    if commands and block.commands:
        lines += ["The empty cells are filled by", "", *(f"    {command}" for command in block.commands), ""]
        takes = f"Together: {block.takes}. A cell in italics is not run: its runs, which may "
        takes += "fill other columns too, would take these GPU-hours."
        lines += [escape.markdown(takes), ""] if block.takes else []
    return lines


def _differences(block: BlockView) -> list[str]:
    """Return the grid of differences from the reference, for a block that has some."""
    shown = [line for line in block.lines if any(cell.difference for cell in line.cells)]
    if not shown:
        return []
    about = f"Difference from {escape.markdown(block.reference or '')}, with its 95 % interval from three pairs on:"
    rows = []
    for line in shown:
        texts = [
            endpoint.with_interval(cell.difference, cell.decimals + 1) if cell.difference else "" for cell in line.cells
        ]
        rows.append([escape.markdown(line.model), escape.markdown(line.method), *texts])
    return [about, "", grid("ll" + "r" * len(block.columns), ["model", "method", *block.columns], rows), ""]


def line_texts(line: Line, block: BlockView, markup: Markup) -> list[str]:
    """Return a line's model, method, origin, cells, n, rates tried and costs as a format writes them."""
    method = markup.text(line.method) + markup.raised(line.marks)
    cells = [_cell(cell, markup) for cell in line.cells]
    cost = [*line.cost, *[""] * (len(block.cost_columns) - len(line.cost))]
    rest = [line.n, line.trials, *cost]
    return [markup.text(line.model), method, line.origin, *cells, *(markup.text(text) for text in rest)]


def _cell(cell: Cell, markup: Markup) -> str:
    if cell.value is None:
        known = cell.waiting is not None and cell.waiting.runs > cell.waiting.without
        hours = markup.hours(gpu_hours.rounded(cell.waiting.hours)) if known and cell.waiting else ""
        return f"{markup.text(cell.word)} {hours}".strip()
    number = f"{cell.value:.{cell.decimals}f}"
    if cell.sd is not None:
        number += f" ± {cell.sd:.{cell.decimals}f}"
    number = markup.text(number)
    return (markup.bold(number) if cell.bold else number) + markup.raised(cell.marks)


def _measured(block: BlockView) -> BlockView:
    lines = tuple(line for line in block.lines if line.source is None and not all(cell.empty for cell in line.cells))
    lines = tuple(replace(line, cells=tuple(replace(cell, waiting=None) for cell in line.cells)) for line in lines)
    return BlockView(**{**vars(block), "lines": lines, "notes": (), "commands": ()})


_MARKDOWN = Markup(
    text=escape.markdown,
    bold=lambda text: f"**{text}**",
    raised=lambda marks: f"<sup>{','.join(marks)}</sup>" if marks else "",
    hours=lambda text: f"*{escape.markdown(text)} h*",
)
_TERMINAL = Markup(
    text=escape.terminal,
    bold=lambda text: f"*{text}",
    raised=lambda marks: f" {','.join(marks)}" if marks else "",
)
