"""What is said below and above a block besides its numbers: failures, doubts, costs, other papers' loose numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from dual_lora.records.schema import Record
from dual_lora.report import neighbours, published
from dual_lora.report.definition import Experiment
from dual_lora.report.measured import MeasuredBlock, Row
from dual_lora.report.published import Published

_COMMITS_NAMED = 4
_TIMES = ("train_seconds", "eval_seconds", "tokens_per_second")


def provenance(records: Sequence[Record]) -> str:
    """Return what a heading says of records that one clean commit did not make; "" where one did."""
    commits = sorted({str(record.origin["commit"])[:7] for record in records if record.origin.get("commit")})
    changed = len({record.run_id for record in records if record.origin.get("dirty")})
    parts = []
    if len(commits) > 1:
        named = f" ({', '.join(commits)})" if len(commits) <= _COMMITS_NAMED else ""
        parts.append(f"made by {len(commits)} commits{named}")
    if changed:
        parts.append(f"{changed} of {len({record.run_id for record in records})} records by uncommitted changes")
    return f" [{'; '.join(parts)}]" if parts else ""


def notes(
    block: MeasuredBlock,
    label: Callable[[Experiment, str, Row], str],
    source: Callable[[str], int],
    alone: Collection[str],
    printed: tuple[Path, Collection[Published]],
) -> list[str]:
    """Return the notes of a block.

    label: the name of a row's model or method. source: gives a source its number. alone: ids of runs without
    neighbours. printed: the folder of published numbers, and those that the table already shows.
    """
    experiment, rows = block.experiment, block.rows
    found: list[str] = []
    chosen_here: dict[str, list[str]] = {}  # settings -> the rows they belong to
    for row in rows:
        name = f"{label(experiment, 'model', row)}, {label(experiment, 'method', row)}"
        guessed = sorted({setting for r in row.records if not r.untrained for setting in r.guessed})
        if guessed:
            chosen_here.setdefault(", ".join(guessed), []).append(name)
        found += [
            f"{name}: {record.name('task')}, seed {record.seed}: {record.status} ({record.message})"
            for record in row.records
            if record.status != "finished"
        ]
        found += [f"{name}: not shown: {'; '.join(row.not_shown)}"] if row.not_shown else []
    found += [f"{'; '.join(names)}: without a public source: {text}" for text, names in chosen_here.items()]
    records = list({record.run_id: record for row in rows for record in row.records}.values())
    found += [f"{record.name('task')}: {note}" for record in records for note in record.scores.notes]
    found += _judged_by_their_choice(experiment, records)
    found += _cost(experiment, records, alone)
    found += _loose(experiment, source, *printed)
    return list(dict.fromkeys(found))


def not_kept(records: Sequence[Record], archived: Collection[str]) -> list[str]:
    """Say of how many runs nothing has what the test items were answered. archived: ids of runs whose replies are."""
    kept = {
        record.run_id: bool(record.scores.per_item) or record.run_id in archived
        for record in records
        if any(measurement.split == "test" for measurement in record.scores.measurements)
    }
    lost = len(kept) - sum(kept.values())
    return (
        [f"of {lost} of {len(kept)} runs the answers to the test items are not kept: they cannot be scored again"]
        if lost
        else []
    )


def _judged_by_their_choice(experiment: Experiment, records: Sequence[Record]) -> list[str]:
    """Say which columns compare methods on validation examples that may have chosen the methods' settings."""
    shown = [column.label for column in experiment.block.columns if column.split == "validation" or column.curve]
    apart = all(record.identity["protocol"].get("validation_part") == "report" for record in records)
    if experiment.block.reference is None or apart or not shown:
        return []
    return [
        f"{', '.join(shown)}: of validation examples that trials may have chosen the settings by; "
        "protocol.validation_part=report keeps them apart"
    ]


def _cost(experiment: Experiment, records: Sequence[Record], alone: Collection[str]) -> list[str]:
    devices = neighbours.devices(records)
    if not devices:
        return []
    finished = [record for record in records if record.status == "finished"]
    several = sum(record.run_id not in alone for record in finished)
    seconds = (
        f"; seconds are of runs that had their card to themselves: {several} of {len(finished)} had not"
        if several and set(_TIMES) & set(experiment.block.cost)
        else ""
    )
    return [f"cost measured on: {devices}{seconds}"]


def _loose(
    experiment: Experiment, source: Callable[[str], int], folder: Path, used: Collection[Published]
) -> list[str]:
    """Return the published numbers about this block's columns that no row shows."""
    found = []
    for file in experiment.block.published_notes:
        for value in published.read(folder, file):
            about = any(value.task in column.published for column in experiment.block.columns)
            if about and value not in used:
                hand = " (second-hand)" if value.second_hand else ""
                number = (
                    f"{value.value:+g} points" if value.metric == "delta_points" else f"{value.value:g} {value.metric}"
                )
                text = f"{value.model}, {value.method}: {number} on {value.task}"
                found.append(f"published{hand}: {text} [{source(value.source)}]")
    return found
