"""What the page says first: for each endpoint whether the claim holds, and how much of the paper is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dual_lora.page.grids import estimate, unit, waiting
from dual_lora.page.values import number, plain
from dual_lora.records.schema import Record
from dual_lora.report import endpoint, provenance, selection, stats
from dual_lora.report.definition import Experiment
from dual_lora.report.layout import BlockView, Cell, Change, Line, TableView, Waiting

QUESTION = (
    "Does Dual LoRA beat LoRA, DoRA and the rest, at what cost, and how sure can one be?",
    "Dual LoRA trains the change of a weight matrix as a magnitude times a direction, ReLU(BA) ⊙ Sign(DC), each of low "
    "rank. Its paper (arXiv 2512.03402) says that with as many trained parameters it beats LoRA.",
)
METHOD = "dual_lora"  # what the question is about
_SHOWN = 3  # comparisons by runs that cannot decide, where there are no others
# The verdict of a comparison -> what the page calls it, and why.
ANSWERS = {
    "better": ("supported", "better than the reference after Holm's correction"),
    "worse": ("not supported", "worse than the reference after Holm's correction"),
    "equal": ("equal within the margin", "two one-sided tests against the margin"),
    "open": ("not decidable", "neither a difference nor equality is shown: more seeds are needed"),
    "at chance": ("not decidable", "the score is at chance"),
    "too few pairs": ("not decidable", f"fewer than {stats.MIN_PAIRS} pairs"),
    "exploratory": ("not decidable", "the runs are from before the endpoint was named, and may have led to it"),
}
RULE = (
    "Each block names one column, its endpoint, before its runs. What counts is ours minus the reference, by seed.",
    f"Supported: better by the paired t test, p below {endpoint.LEVEL} after Holm's correction over the endpoints of a "
    f"table's page, from {stats.MIN_PAIRS} pairs on, above chance, in runs begun after the endpoint was named.",
    "Not supported: worse by the same test.",
    "Where the endpoint is how a difference changes with size: the same of the seeds' slopes, from three seeds on.",
    "Equal within the margin: two one-sided t tests, corrected by Holm, put the difference within the margin.",
    "Not decidable: the runs show neither, are too few, at chance, or older than the endpoint.",
    "Not run: no record of the method or of its reference.",
)


def headline(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the answer in a few words and in a sentence, and the places of the verdicts behind it.

    Decided ones come first, of equals the one of more pairs.
    """
    asked = [entry for entry in found if entry["name"] == METHOD]
    own = [entry for entry in asked if not entry.get("checks")]
    counts = Counter(entry["answer"] for entry in own)
    better, worse, equal = (counts[name] for name in ("supported", "not supported", "equal within the margin"))
    older = ANSWERS["exploratory"][1]
    without = sum(entry["why"] == older for entry in own)  # they cannot decide, whatever they show
    ran = len(own) - counts["not run"] - without
    older_ones = f" ({without} because their runs are older than the endpoint)" if without else ""
    short = f"Better in {better} of {ran} comparison{'' if ran == 1 else 's'}, worse in {worse}"

    def weight(place: int) -> tuple[bool, bool, bool, int]:
        entry = found[place]
        return not entry.get("checks"), entry["answer"] != "not decidable", entry["why"] != older, entry["diff"][3]

    tested = [place for place, entry in enumerate(found) if entry["name"] == METHOD and entry.get("diff")]
    tested.sort(key=weight, reverse=True)
    meant = [place for place in tested if found[place]["why"] != older]
    return {
        "short": short if better + worse + equal else "Not shown so far",
        "text": f"Of {len(own)} comparisons with {' or '.join(sorted({entry['reference'] for entry in own}))}, one for "
        f"each endpoint, {better} find Dual LoRA better, {worse} worse and {equal} equal within the margin; "
        f"{counts['not decidable']} do not decide{older_ones}, and {counts['not run']} are not run."
        + _not_counted([entry for entry in asked if entry.get("checks")]),
        "show": meant or tested[:_SHOWN],  # all that can decide, so that none is left out for what it says
    }


def _not_counted(found: Sequence[Mapping[str, Any]]) -> str:
    """Say which comparisons only make sure of another one."""
    if not found:
        return ""
    whose, counts = sorted({entry["checks"] for entry in found}), Counter(entry["answer"] for entry in found)
    return (
        f" Not counted: {len(found)} that check {' or '.join(whose)} ({counts['supported']} better, "
        f"{counts['not supported']} worse)."
    )


def verdicts(view: TableView, experiments: Mapping[str, Experiment]) -> list[dict[str, Any]]:
    """Return one entry for each endpoint of a table and each method that it compares with the reference."""
    found = []
    for place, block in enumerate(view.blocks):
        experiment = experiments[block.experiment]
        named = experiment.block.endpoint
        if named is None or named.column not in block.columns:
            continue
        column = block.columns.index(named.column)
        decides = experiment.block.column(named.column)
        changes = {change.method: change for change in block.changes}
        checked = experiments[experiment.block.checks].block.title if experiment.block.checks else None
        told: set[str] = set()  # methods of which one entry stands for all rows
        for number_of_row, line in enumerate(block.lines):
            if line.source is not None or line.choices["method"] == experiment.block.reference:
                continue
            method = line.choices["method"]
            entry = _verdict(line.cells[column], _without_runs(experiment, line))
            if experiment.block.decides_by_trend:
                if method in told:
                    continue
                told.add(method)
                change = changes.get(method)
                entry = (
                    _changed(change)
                    if change
                    else {"answer": "not run", "why": "too few sizes", "todo": block.commands}
                )
                # Not named: a lead that grows is not a lead, so it is none of the comparisons that are counted.
                entry |= {"value": None, "against": None, "name": "", "asked": "better with size?"}
            if entry is not None:
                found.append(
                    {
                        "table": view.name,
                        "block": place,
                        "row": number_of_row,
                        "column": column,
                        "endpoint": plain(named.column),
                        "better": decides.better,
                        "decimals": decides.decimals,
                        "unit": unit(decides),
                        "margin": named.margin,
                        "reference": plain(block.reference or experiment.block.reference),
                        "model": plain(line.model),
                        "method": plain(line.method),
                        "name": method,
                        "value": number(line.cells[column].value),
                        "against": number(_reference(block, experiment, line, column).value),
                        **({"checks": plain(checked)} if checked else {}),
                        **entry,
                    }
                )
    return found


def coverage(views: Mapping[str, TableView], experiments: Mapping[str, Experiment]) -> list[dict[str, Any]]:
    """Return, for each table with published numbers, how many cells of the published protocol are run here."""
    found = []
    for name, view in views.items():
        blocks = [block for block in view.blocks if experiments[block.experiment].block.published_models]
        lines = [line for block in blocks for line in block.lines if line.source is None]
        cells = [cell for line in lines for cell in line.cells]
        printed = [cell for block in blocks for line in block.lines if line.source is not None for cell in line.cells]
        counted = {block.experiment: block for block in blocks}
        left = sum((block.waiting for block in counted.values()), Waiting(0, 0.0))
        if cells:
            found.append(
                {
                    "table": name,
                    "title": plain(view.title),
                    "measured": sum(cell.value is not None for cell in cells),
                    "cells": len(cells),
                    "published": sum(cell.value is not None for cell in printed),
                    "done": sum(block.runs_done for block in counted.values()),
                    "runs": sum(block.runs_all for block in counted.values()),
                    "waiting": waiting(left),
                }
            )
    return found


def unknown(held: Sequence[Record]) -> dict[str, int]:
    """Return how many runs have settings without a public source, code that no commit has, or did not finish."""
    sources = [[str(source).lower() for source in (one.origin.get("recipe_sources") or {}).values()] for one in held]
    return {
        "guessed": sum(any(source.startswith("guess") for source in own) for own in sources),
        "dirty": sum("uncommitted" in provenance.maker(record).get("commit", "") for record in held),
        "failed": sum(record.status != "finished" for record in held),
    }


def _verdict(cell: Cell, todo: list[str]) -> dict[str, Any] | None:
    tested = cell.comparison
    if tested is None:
        if cell.value is not None:
            return None  # the untrained base is compared with nothing
        return {"answer": "not run", "why": cell.word or "no record", "todo": todo}
    answer, why = ANSWERS.get(tested.verdict, ("not decidable", tested.verdict))
    p_values = {"p": tested.p, "sign_flip": tested.sign_flip, "p_equal": tested.p_equal}
    return {
        "answer": answer,
        "why": why,
        "diff": estimate(tested.difference),
        **{name: number(value, 4) for name, value in p_values.items() if value is not None},
    }


def _changed(change: Change) -> dict[str, Any]:
    answer, why = ANSWERS[change.verdict]
    p_values = {"p": change.p, "p_equal": change.p_equal}
    return {
        "answer": answer,
        "why": change.said if change.verdict != "exploratory" else why,
        "diff": estimate(change.difference),
        "endpoint": plain(change.of),
        "method": plain(change.label),
        "margin": change.margin,
        **{name: number(value, 4) for name, value in p_values.items() if value is not None},
    }


def _reference(block: BlockView, experiment: Experiment, line: Line, column: int) -> Cell:
    wanted = {**line.choices, "method": experiment.block.reference}
    other = next((row for row in block.lines if row.source is None and row.choices == wanted), None)
    return other.cells[column] if other else Cell()


def _without_runs(experiment: Experiment, line: Line) -> list[str]:
    """Return the commands that do a row and its reference, where the row has no record."""
    if line.records:
        return []
    methods = (line.choices["method"], str(experiment.block.reference))
    runs = [
        run
        for run in experiment.runs()
        if run["method"] in methods and all(run[key] == value for key, value in line.choices.items() if key != "method")
    ]
    return selection.to_do(experiment, runs)
