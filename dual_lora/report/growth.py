"""What a table says of growth: of a difference with a size, of the best rate with another setting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from dual_lora.report import best_rate, endpoint, escape, figures, labels, stats
from dual_lora.report.definition import Endpoint, Experiment
from dual_lora.report.formats import pipes
from dual_lora.report.layout import BlockView, Cell, Comparison, Line, TableView

OURS, LORA = "dual_lora", "lora"
Compared = tuple[Line, Cell, Comparison]  # a row, its cell of the endpoint, and what the endpoint says of it


def doublings(block: BlockView, experiment: Experiment, named: Endpoint, compared: Sequence[Compared]) -> Iterator[str]:
    """Say how a method's difference changes with each doubling of a size that the sweep varies."""
    by_size: dict[tuple[str, str], dict[float, stats.Stratum]] = defaultdict(dict)
    column = block.columns.index(named.column)
    for line, cell, _ in compared:
        wanted = {**line.choices, "method": experiment.block.reference}
        reference = next(one for one in block.lines if one.source is None and one.choices == wanted)
        pairs = stats.differences(cell.strata, reference.cells[column].strata)
        varied = labels.varied(experiment, line.choices)
        if pairs and len(pairs) == 1 and len(varied) == 1:
            [(setting, value)] = varied.items()
            if best_rate.is_number(value):
                by_size[figures.method_of(experiment, line, along=setting), setting][float(value)] = pairs[0]
    for (method, setting), own in by_size.items():
        slope = stats.doubling(own)
        if slope is not None:
            shown = endpoint.with_interval(slope, compared[0][1].decimals + 2)
            yield escape.markdown(
                f"{method} minus {block.reference} in {named.column} changes by {shown} with each doubling of "
                f"{labels.of_setting(setting)} ({slope.n} seeds)."
            )


def best_rates(view: TableView, experiments: Mapping[str, Experiment]) -> Iterator[str]:
    """Say of rates without an endpoint where the best are, how they grow, and how two methods' compare."""
    lines = [
        (experiment, column, line)
        for block in view.blocks
        if (experiment := experiments[block.experiment]).block.endpoint is None
        for column in experiment.block.columns
        if experiment.block.figure is not None and column.label == experiment.block.figure.column
        for line in block.lines
        if line.records
    ]
    found = best_rate.best_rates(lines)
    names = {line.choices["method"]: figures.method_of(experiment, line) for experiment, _, line in lines}
    names = {name: text.partition(" (")[0] for name, text in names.items()}
    yield from ("", pipes(["method", "at", "best rate, 95 % over items", ""]), pipes(["---"] * 4)) if found else ()
    for one in found:
        settings = ", ".join(f"{labels.of_setting(key)} {value}" for key, value in one.settings)
        ends = "at an end of its grid" if one.at_end else ""
        yield pipes([*map(escape.markdown, (names[one.method], settings, _ranged(one.rate, ".3g"))), ends])
    yield from [""] if found else []
    for (method, setting), slope in best_rate.growth(found).items():
        text = f"{names[method]}: slope of log best rate over log {labels.of_setting(setting)} {_ranged(slope, '.2f')}."
        yield escape.markdown(text)
    for at, ratio in best_rate.ratios(found, OURS, LORA).items():
        where = ", ".join(f"{labels.of_setting(key)} {value}" for key, value in at) or "this model"
        yield escape.markdown(f"{names[OURS]}'s best rate over {names[LORA]}'s, {where}: {_ranged(ratio, '.2f')}.")


def _ranged(found: best_rate.Range, shown: str) -> str:
    return f"{found.value:{shown}} [{found.low:{shown}}, {found.high:{shown}}]".replace("-", "−")
