"""What the endpoints say, for people who read documents: per table, in short for all, and what each table took.

Parts of README.md and docs/*.md that `run.py tables` writes and `--check` holds:

<!-- finding:study_glue columns=CoLA,Avg. -->     what a table's endpoint says of each method, or the commands that run
<!-- /finding -->                                 it; differences in these columns, in all where none are named

<!-- finding:headline -->     a row or a line for each endpoint: Dual LoRA against its reference
<!-- finding:costs -->        GPU minutes, runs and commands of every table that has runs
<!-- finding:figures -->      the figures that are drawn, and the commands for those that are not
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dual_lora.config import legal_values
from dual_lora.records.schema import Record
from dual_lora.report import endpoint, escape, figures, neighbours, selection, stats
from dual_lora.report.definition import Endpoint, Experiment
from dual_lora.report.grid import grid
from dual_lora.report.layout import BlockView, Cell, Change, Comparison, Line, TableView

OURS = "dual_lora"
Compared = tuple[Line, Cell, Comparison]  # a row, its cell of the endpoint, and what the endpoint says of it


@dataclass(frozen=True)
class Findings:
    """The findings of some tables, as Markdown. `root`: from the document to the folder that holds `results/`."""

    views: Mapping[str, TableView]
    experiments: Mapping[str, Experiment]
    root: str = ""

    def part(self, name: str, columns: str | None = None) -> str:
        """Return the part of a document that a marker names.

        Raises `ValueError` for a name that is no table, or a column that no block of the table has.
        """
        if name == "headline":
            return "\n".join(self._headline())
        if name == "costs":
            return "\n".join(self._costs())
        if name == "figures":
            return "\n".join(self._figures())
        if name not in self.views:
            raise ValueError(f"finding {name!r}{legal_values(name, ['headline', 'costs', 'figures', *self.views])}")
        wanted = [word.strip() for word in columns.split(",")] if columns else []
        legal = list(dict.fromkeys(label for block in self.views[name].blocks for label in block.columns))
        unknown = [word for word in wanted if word not in legal]
        if unknown:
            raise ValueError(f"finding {name}: column {unknown[0]!r}{legal_values(unknown[0], legal)}")
        return "\n".join(self._finding(self.views[name], wanted)).strip()

    def _link(self, view: TableView, text: str) -> str:
        return f"[{text}]({self.root}results/tables/{view.name}.md)"

    def _endpoints(self, view: TableView) -> Iterator[tuple[BlockView, Experiment, Endpoint]]:
        """Yield the blocks that compare methods; of a block with panels the one that has the endpoint's column."""
        for block in view.blocks:
            experiment = self.experiments[block.experiment]
            named = experiment.block.endpoint
            if named is not None and named.column in block.columns:
                yield block, experiment, named

    def _finding(self, view: TableView, wanted: Sequence[str]) -> Iterator[str]:
        waiting: dict[str, list[str]] = {}  # heading -> the commands that do its runs
        for block in view.blocks:
            experiment = self.experiments[block.experiment]
            named = experiment.block.endpoint
            if named is not None and named.column not in block.columns:
                continue  # another panel has it
            compared = _compared(block, named) if named is not None else []
            if compared:
                shown = [place for place, label in enumerate(block.columns) if label in (wanted or block.columns)]
                yield from self._compared(view, block, compared, shown)
            elif named is None and _records([block]):
                found = map(escape.markdown, block.findings)
                yield from ("", f"{escape.markdown(block.heading)}:", *found, self._took(view, block, experiment))
            else:
                runs = selection.missing(experiment, _records([block]))
                waiting[escape.markdown(block.heading)] = selection.to_do(experiment, runs)
        if waiting:
            yield from ("", f"**Not run**: {'; '.join(waiting)}.", "")
            yield from (f"    {command}" for command in dict.fromkeys(itertools.chain(*waiting.values())))

    def _compared(
        self, view: TableView, block: BlockView, compared: Sequence[Compared], columns: Sequence[int]
    ) -> Iterator[str]:
        """Show each method's differences from the reference, what tests say of the endpoint, and what the runs took."""
        experiment = self.experiments[block.experiment]
        named = experiment.block.endpoint
        assert named is not None
        margin = [] if named.margin is None else [f"equal within ± {named.margin:g}"]
        spread = ["detectable"] if any(tested.detectable is not None for _, _, tested in compared) else []
        headings = [*(block.columns[place] for place in columns), "pairs", "p", "sign-flip p", *margin, *spread]
        yield from ("", f"{escape.markdown(block.heading)}; minus {escape.markdown(block.reference or '')}:", "")
        rows = []
        for line, cell, tested in compared:
            found = [_difference(line.cells[place]) for place in columns]
            found += [str(tested.difference.n), _p(tested.p), _p(tested.sign_flip)]
            found += [_p(tested.p_equal) for _ in margin]
            found += ["" if tested.detectable is None else f"{tested.detectable:.{cell.decimals + 1}f}" for _ in spread]
            said = f"**{endpoint.words(tested, named)}**{self._smaller(block, line)}"
            rows.append([*map(escape.markdown, [line.method, *found]), said])
        named_columns = ["method", *map(escape.markdown, headings), "the endpoint says"]
        yield grid(f"l{'r' * len(headings)}l", named_columns, rows)
        column = escape.markdown(named.column)
        yield from ("", f"Paired by seed, with 95 % intervals. p: t test of {column}, after Holm.")
        if margin:
            yield f"Equal: two one-sided t tests of {column} against the margin, after Holm."
        if spread:
            yield (
                f"Detectable: with {len(experiment.seeds)} seeds at 80 % power, by the spread of the first "
                f"{stats.MIN_PAIRS} pairs."
            )
        yield from map(escape.markdown, block.findings[len(compared) :])  # beyond the endpoint's
        yield self._took(view, block, experiment)

    def _smaller(self, block: BlockView, line: Line) -> str:
        """Say of our method's row which table makes its result smaller than it says; nothing where none does."""
        if line.choices["method"] != OURS:
            return ""
        views = [view for view in self.views.values() if any(b.makes_smaller == block.experiment for b in view.blocks)]
        return "".join(f"; smaller in {self._link(view, escape.markdown(view.title))}" for view in views)

    def _checks(self, block: BlockView) -> str:
        """Say of which result a block makes sure, so that it is not taken for a further one."""
        checked = self.experiments[block.experiment].block.checks
        name = self._table_of(checked) if checked else None
        return f"; a check of {self._link(self.views[name], escape.markdown(self.views[name].title))}" if name else ""

    def _took(self, view: TableView, block: BlockView, experiment: Experiment) -> str:
        records = _records([block])
        known = {str(record.origin["commit"])[:7] for record in records if record.origin.get("commit")}
        commits = sorted(known) or ["not known"]
        text = f"{self._link(view, 'Scores')}: {block.runs_done} of {block.runs_all} runs, {_minutes(records)}"
        text += f", commit {', '.join(commits)}" if len(commits) < 5 else f", {len(commits)} commits"
        trials = dict.fromkeys(self._table_of(name) for name in experiment.block.trials)
        rates = [self._link(self.views[name], "the trials that chose the rates") for name in trials if name]
        return f"{text}{''.join(f'; {rate}' for rate in rates)}."

    def _table_of(self, experiment: str) -> str | None:
        return next(
            (name for name, view in self.views.items() if any(b.experiment == experiment for b in view.blocks)), None
        )

    def _headline(self) -> Iterator[str]:
        """Say each endpoint in a row or a line; then which runs have no verdict, and what is not run."""
        rows: list[list[str]] = []
        said: list[str] = []
        without: list[str] = []
        waiting: list[str] = []
        for view in sorted(self.views.values(), key=lambda view: _in_order(view.title)):
            measured = any(_compared(block, named) for block, _, named in self._endpoints(view))
            for block, _, named in self._endpoints(view):
                heading = escape.markdown(f"{view.title}: {block.heading.partition(' [')[0]}")
                compared = _compared(block, named)
                if not compared:
                    waiting.append(self._link(view, heading if measured else escape.markdown(view.title)))
                elif all(tested.verdict == "exploratory" for _, _, tested in compared):
                    without.append(self._link(view, heading))
                else:
                    reference, column = (escape.markdown(word or "") for word in (block.reference, named.column))
                    ours = [one for one in compared if one[0].choices["method"] == OURS]
                    if self.experiments[block.experiment].block.decides_by_trend:
                        rows += [_changed(self._link(view, heading), reference, one, block) for one in block.changes]
                        continue
                    for one in ours:
                        difference, pairs, verdict = _tested(one, named)
                        verdict += self._smaller(block, one[0]) + self._checks(block)
                        rows.append(
                            [self._link(view, heading), column, _at(reference, one, ours), difference, pairs, verdict]
                        )
                    if not ours:
                        verdicts = _verdicts(compared, named)
                        said.append(f"- {self._link(view, heading)}: {column} against {reference}: {verdicts}.")
                    title = self._link(view, escape.markdown(view.title))
                    said += [f"- {title}: {escape.markdown(found)}" for found in block.findings[len(compared) :]]
        if rows:
            yield grid("lllrrl", ["where", "score", "Dual LoRA minus", "difference", "pairs", "verdict"], rows)
            yield ""
        yield from said
        if without:
            yield f"- No verdict, since the runs are older than the endpoint: {'; '.join(without)}."
        if waiting:
            yield f"- Not run: {'; '.join(dict.fromkeys(waiting))}."

    def _figures(self) -> Iterator[str]:
        asked = [figure for view in self.views.values() for figure in figures.figures(view, self.experiments)]
        for title, own in itertools.groupby((one for one in asked if one.panels), key=lambda one: one.title):
            links = [f"[{figures.KINDS[one.kind]}]({self.root}results/figures/{one.name}.svg)" for one in own]
            yield f"- {escape.markdown(title)}: {', '.join(links)}"
        waiting = [one for one in asked if not one.panels]
        for commands, own in itertools.groupby(waiting, key=lambda one: one.commands):
            titles = dict.fromkeys(escape.markdown(one.title) for one in own)
            yield f"- {'; '.join(titles)}: not run: {'; '.join(f'`{command}`' for command in commands)}"

    def _costs(self) -> Iterator[str]:
        rows = []
        for view in self.views.values():
            records = _records(view.blocks)
            if not records:
                continue
            commands = [
                command
                for name in dict.fromkeys(block.experiment for block in view.blocks if _records([block]))
                for command in selection.to_do(self.experiments[name], self.experiments[name].runs())
            ]
            minutes = neighbours.gpu_minutes(records)
            rows.append(
                [
                    self._link(view, escape.markdown(view.title)),
                    str(len(records)),
                    f"{minutes:.1f}" if minutes else "",
                    escape.markdown(neighbours.devices(records)),
                    "<br>".join(f"`{command}`".replace("|", "\\|") for command in commands),
                ]
            )
        yield grid("lrrll", ["table", "runs", "GPU minutes", "on", "again with"], rows)


def _in_order(title: str) -> list[tuple[int, str]]:
    """Return what sorts titles with numbers by these: E2 before E10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", title)]


def _compared(block: BlockView, named: Endpoint) -> list[Compared]:
    """Return the rows that the endpoint compares with the reference."""
    column = block.columns.index(named.column)
    cells = [(line, line.cells[column]) for line in block.lines]
    return [(line, cell, cell.comparison) for line, cell in cells if cell.comparison is not None]


def _tested(one: Compared, named: Endpoint) -> tuple[str, str, str]:
    """Return the difference with its interval, the number of pairs, and the verdict."""
    _, cell, tested = one
    difference = escape.markdown(endpoint.with_interval(tested.difference, cell.decimals + 1))
    return difference, str(tested.difference.n), f"**{endpoint.words(tested, named)}**"


def _at(reference: str, one: Compared, ours: Sequence[Compared]) -> str:
    """Return the reference, where a block has several rows of our method with what tells this one."""
    settings = one[0].method.partition(" (")[2]
    return f"{reference} ({escape.markdown(settings)}" if len(ours) > 1 else reference


def _changed(where: str, reference: str, change: Change, block: BlockView) -> list[str]:
    """Return the same of a difference that changes with a swept setting."""
    decimals = next(cell.decimals for line in block.lines for cell in line.cells)
    difference = escape.markdown(endpoint.with_interval(change.difference, decimals + 1))
    return [where, escape.markdown(change.of), reference, difference, str(change.difference.n), f"**{change.said}**"]


def _verdicts(compared: Sequence[Compared], named: Endpoint) -> str:
    """Say which methods are what, where Dual LoRA is the reference."""
    said = sorted(compared, key=lambda one: endpoint.words(one[2], named))
    groups = itertools.groupby(said, key=lambda one: endpoint.words(one[2], named))
    return "; ".join(
        f"**{word}**: {' / '.join(escape.markdown(line.method) for line, _, _ in rows)}" for word, rows in groups
    )


def _records(blocks: Sequence[BlockView]) -> list[Record]:
    held = (record for block in blocks for line in block.lines for record in line.records)
    return list({record.run_id: record for record in held}.values())


def _minutes(records: Sequence[Record]) -> str:
    return f"{neighbours.gpu_minutes(records):.1f} GPU minutes ({escape.markdown(neighbours.devices(records))})"


def _difference(cell: Cell) -> str:
    return endpoint.with_interval(cell.difference, cell.decimals + 1) if cell.difference else ""


def _p(value: float | None) -> str:
    return "" if value is None else endpoint.p_value("", value).replace(" = ", "").strip()
