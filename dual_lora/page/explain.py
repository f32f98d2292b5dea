"""Where one number of a table comes from, as lines for a terminal: what the page shows of a cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from dual_lora import shipped
from dual_lora.config import legal_values
from dual_lora.page import grids
from dual_lora.records.schema import Record
from dual_lora.report import endpoint, escape, provenance
from dual_lora.report.definition import Experiment
from dual_lora.report.gpu_hours import GpuHours
from dual_lora.report.layout import MARKS, BlockView, Cell, Line, TableView


def explain(
    view: TableView,
    experiments: Mapping[str, Experiment],
    row: str,
    column: str,
    hours: GpuHours | None = None,
    more: Sequence[str] = (),
) -> list[str]:
    """Return what is known of the cells of a row and column, in every block that has them: ours, published, empty.

    `row` is a method as the table or configs/ call it, or "MODEL, METHOD". Commands have the words `more` besides.
    Raises `ValueError` with the legal names.
    """
    columns = list(dict.fromkeys(label for block in view.blocks for label in block.columns))
    lines = [line for block in view.blocks for line in block.lines]
    if not any(column.lower() == label.lower() for label in columns):
        raise ValueError(f"column {column!r} is not in table {view.name}{legal_values(column, columns)}")
    if not any(_is(line, row) for line in lines):
        legal = list(dict.fromkeys(line.method for line in lines if line.source is None))
        raise ValueError(f"row {row!r} is not in table {view.name}{legal_values(row, legal)}")
    found = [
        (block, line, place)
        for block in view.blocks
        for place, label in enumerate(block.columns)
        if label.lower() == column.lower()
        for line in block.lines
        if _is(line, row)
    ]
    if not found:
        raise ValueError(f"no block of table {view.name} has both the row {row!r} and the column {column!r}")
    found.sort(key=lambda one: (one[1].cells[one[2]].empty, one[1].source is not None))
    lines_of = [text for one in found for text in (*_cell(view, experiments, hours or GpuHours(), more, *one), "")]
    return [f"{text[: len(text) - len(text.lstrip())]}{escape.terminal(text)}" for text in lines_of[:-1]]


def _is(line: Line, row: str) -> bool:
    names = {line.method, line.choices.get("method", line.method), f"{line.model}, {line.method}"}
    return row.lower() in {name.lower() for name in names}


def _cell(
    view: TableView,
    experiments: Mapping[str, Experiment],
    hours: GpuHours,
    more: Sequence[str],
    block: BlockView,
    line: Line,
    place: int,
) -> Iterator[str]:
    cell, label = line.cells[place], block.columns[place]
    yield f"{line.model}, {line.method}: {label}, in: {block.heading}"
    if line.source is not None:
        yield f"    {_number(cell) or 'not printed'}, published: {view.sources[line.source - 1]}"
        return
    values = grids.table(view, experiments)["blocks"][view.blocks.index(block)]
    row = values["rows"][block.lines.index(line)]
    yield f"    {_number(cell) or cell.word or 'not run'}"
    if cell.difference is not None:
        difference = endpoint.with_interval(cell.difference, cell.decimals + 1)
        yield f"    difference from {block.reference}: {difference}, {cell.difference.n} pairs"
    if cell.comparison is not None:
        yield f"    verdict: {cell.comparison.verdict}"
    yield from (f"    {mark}: {MARKS[mark]}" for mark in (*line.marks, *cell.marks))
    for other, printed in zip(values["rows"], block.lines, strict=True):
        if printed.source is not None and other["of"] == row["is"] and printed.cells[place].value is not None:
            yield f"    published: {_number(printed.cells[place])}, {view.sources[printed.source - 1]}"
    tasks = values["columns"][place]["task"].split(", ")
    records = [record for record in line.records if record.name("task") in tasks]
    yield from (f"    {text}" for text in _seeds(cell, tasks, records))
    yield from (f"    {text}" for text in _origin(records))
    again = row["cells"][place].get("todo") or row["todo"]
    if again:
        yield "    fill it with:" if cell.value is None else "    runs of this row that are missing:"
        yield from (f"        {shipped.typed(command, *more)}" for command in again)
        if cell.waiting is not None:
            yield f"        {hours.sentence(cell.waiting, [line.choices['model']])}"
    if row["again"]:
        yield "    repeat with:"
        yield from (f"        {shipped.typed(command, *more)}" for command in row["again"])


def _number(cell: Cell) -> str:
    if cell.value is None:
        return ""
    spread = "" if cell.sd is None else f" ± {cell.sd:.{cell.decimals}f}"
    interval = "" if cell.low is None else f", 95 % interval of the mean {cell.low:.{cell.decimals + 1}f} to "
    interval += "" if cell.high is None else f"{cell.high:.{cell.decimals + 1}f}"
    return f"{cell.value:.{cell.decimals}f}{spread}{interval}"


def _seeds(cell: Cell, tasks: Sequence[str], records: Sequence[Record]) -> Iterator[str]:
    for task, stratum in zip(tasks, cell.strata, strict=len(cell.strata) > 1):
        for seed, value in sorted(stratum.items()):
            mine = (
                r for r in records if (r.untrained or r.seed == seed) and (r.name("task") == task or len(tasks) == 1)
            )
            runs = ", ".join(record.run_id for record in mine)
            yield f"{task}, seed {seed}: {value:.{cell.decimals + 2}f} ({runs})"


def _origin(records: Sequence[Record]) -> Iterator[str]:
    """Say once what all records share, and otherwise each value with its number of runs."""
    of: dict[str, Callable[[Record], str]] = {
        name: lambda record, name=name: provenance.maker(record).get(name, "")  # type: ignore[misc]
        for name in ("commit", "card", "versions", "scored again by")
    }
    of |= {"recipe": lambda record: record.name("recipe"), "rates tried": lambda record: str(record.trials)}
    for name, tell in of.items():
        counts = Counter(text for record in records if (text := tell(record)))
        if counts:
            told = (text if len(counts) == 1 else f"{text} ({count} runs)" for text, count in counts.items())
            yield f"{name}: {'; '.join(told)}"
    off = {name: values for record in records for name, values in provenance.off_recipe(record).items()}
    yield from (f"differs from the recipe: {name}={held} (recipe: {stated})" for name, (stated, held) in off.items())
    sources = {name: str(s) for r in records for name, s in (r.origin.get("recipe_sources") or {}).items()}
    yield from (f"{name}: {source}" for name, source in sorted(sources.items()))
