"""Which records belong to which run of a sweep, and so to which cell of a block.

A record belongs to a run if it agrees with every choice of the sweep. Records that agree in all choices and still
differ (another learning rate, another rank, other data) are variants. The one with the most finished seeds is shown;
among equals the one with the fewest settings that depart from the current recipe, then the latest. The others are
named below the table. The choice never looks at a score.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dual_lora import shipped
from dual_lora.config import MNLI_STARTED, RecipeConfig, recipes
from dual_lora.config.recipes import Recipe
from dual_lora.records.schema import GROUPS, Record
from dual_lora.report.definition import Experiment

# Settings that cannot change a number; they are not part of a record's identity.
_WITHOUT_INFLUENCE = (
    "launch",
    "launch.",
    "data.dir",
    "results",
    "tracking",
    "retry",
    "plan",
    "diagnostics",
    "model.path",
    "recipe.trials",
    "task.metrics",
)
RATE = "recipe.learning_rate"
FIRST_SEED = 100  # of trials, which choose; seeds below report
# What a recipe that is silent about a setting means by it.
_UNSTATED = {
    field.name: field.default for field in dataclasses.fields(RecipeConfig) if field.default is not dataclasses.MISSING
}


class MixedBlockError(ValueError):
    """Records of two protocols or profiles in one block; the message names the fields that differ and the records."""


def is_local_play(record: Record) -> bool:
    """Whether a record can never be in a committed table: the demo's, or one on the sample data."""
    return record.names[-1] == "demo" or record.source == "sample"


def belongs(record: Record, choices: Mapping[str, str]) -> bool:
    """Whether a record agrees with every choice (setting -> value as on the command line)."""
    return all(_agrees(record, key.lstrip("+"), value) for key, value in choices.items())


def in_sweep(record: Record, experiment: Experiment) -> bool:
    """Whether a record belongs to a run of the experiment's sweep."""
    return run_of(record, experiment) is not None


def run_of(record: Record, experiment: Experiment) -> dict[str, str] | None:
    """Return the run of the sweep that a record belongs to, the first of several; None if there is none."""
    if record.names not in experiment.names or not (record.untrained or record.seed in experiment.seeds):
        return None
    run = dict(zip(GROUPS, record.names, strict=True))
    for key, values in experiment.sweep.items():
        if key in run:
            continue
        fitting = next((value for value in values if _agrees(record, key.lstrip("+"), value)), None)
        if fitting is None:
            return None
        run[key] = fitting
    return {key: run[key] for key in experiment.sweep}


def with_extension(experiment: Experiment, records: Iterable[Record]) -> Experiment:
    """Return trials of learning rates with the rates that only records have: `run.py tune` extends a file's grid."""
    rates = experiment.sweep.get(RATE, ())
    if len(rates) < 2 or min(experiment.seeds) < FIRST_SEED:
        return experiment
    rest = replace(experiment, sweep={key: values for key, values in experiment.sweep.items() if key != RATE})
    held = {float(record.identity["recipe"]["learning_rate"]) for record in records if in_sweep(record, rest)}
    added = [f"{rate:g}" for rate in held - set(map(float, rates))]
    return replace(experiment, sweep={**experiment.sweep, RATE: tuple(sorted([*rates, *added], key=float))})


def with_winner(experiment: Experiment, records: Iterable[Record]) -> Experiment:
    """Return the experiment without the candidates that were not run: `run.py tune` runs the best one alone."""
    candidates = set(experiment.block.candidates)
    ran = {record.name("method") for record in records if in_sweep(record, experiment)} if candidates else candidates
    methods = tuple(name for name in experiment.sweep["method"] if name not in candidates - ran)
    return replace(experiment, sweep={**experiment.sweep, "method": methods})


def select(experiment: Experiment, records: Iterable[Record]) -> list[Record]:
    """Return the records of a block. Raises `MixedBlockError` where they do not share protocol and profile."""
    chosen = [record for record in records if in_sweep(record, experiment)]
    _one_of_each(experiment, chosen)
    return chosen


def of_row(records: Sequence[Record], row: Mapping[str, str], task: str) -> tuple[list[Record], list[str]]:
    """Return the records of a row and task, by seed, and a description of each variant that is not shown."""
    variants: dict[str, list[Record]] = defaultdict(list)
    choices = {"task": task, **row}  # in an order that most records end at
    for record in records:
        if belongs(record, choices):
            variants[_variant(record)].append(record)
    if not variants:
        return [], []
    ranked = sorted(variants, key=lambda key: _weight(variants[key]), reverse=True)
    shown = _one_per_seed(variants[ranked[0]])
    others = [f"{len(variants[key])} with {_differences(key, ranked[0])}" for key in ranked[1:]]
    return shown, others


def missing(experiment: Experiment, records: Sequence[Record]) -> list[dict[str, str]]:
    """Return the runs that no record belongs to, not even one of a failed run."""
    held = by_names(records)
    return [run for run in experiment.runs() if not any(belongs(record, run) for record in held[names(run)])]


def by_names(records: Iterable[Record]) -> Mapping[tuple[str, ...], list[Record]]:
    """Return the records by model, task, method, protocol and profile, in their order; none for other names."""
    held: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        held[record.names].append(record)
    return held


def asked_by(
    experiments: Iterable[Experiment], records: Sequence[Record]
) -> Mapping[tuple[str, ...], list[Experiment]]:
    """Return by the same names the experiments that have runs so called, in their order; none for other names.

    Trials of learning rates have the rates that the records extend them by: their table shows these too.
    """
    found: dict[tuple[str, ...], list[Experiment]] = defaultdict(list)
    for experiment in (with_extension(one, records) for one in experiments):
        for name in experiment.names:
            found[name].append(experiment)
    return found


def names(run: Mapping[str, str]) -> tuple[str, ...]:
    """Return what `by_names` has the records of a run under."""
    return tuple(run[key] for key in GROUPS)


def commands(experiment: Experiment, runs: Sequence[Mapping[str, str]], more: Sequence[str] = ()) -> list[str]:
    """Return few sweeps that together do exactly these runs. more: words that each command ends with."""
    products: list[dict[str, tuple[str, ...]]] = [{key: (value,) for key, value in run.items()} for run in runs]
    order = [key for key in ("seed", "method", "task") if key in experiment.sweep]
    for key in [*order, *(key for key in experiment.sweep if key not in order)]:
        merged: dict[tuple[Any, ...], dict[str, tuple[str, ...]]] = {}
        for product in products:
            rest = tuple(item for item in product.items() if item[0] != key)
            if rest in merged:
                merged[rest][key] += product[key]
            else:
                merged[rest] = dict(product)
        products = list(merged.values())
    return [_command(experiment, product, more) for product in products]


def to_do(
    experiment: Experiment, runs: Sequence[Mapping[str, str]], *, retry: bool = False, more: Sequence[str] = ()
) -> list[str]:
    """Return what a user types to have these runs done. Where trials choose the settings, that is all of the block.

    more: words that each command needs besides, for own files or another results folder.
    """
    if not runs or not experiment.block.trials:
        return commands(experiment, runs, [*(["retry=true"] if retry else []), *more])
    chosen = shipped.command_line("tune", *experiment.block.trials, "--then", experiment.name, *more)
    with_retry = "sed 's/$/ retry=true/' | " if retry else ""
    return [f"{chosen} | {with_retry}sh  # the trials; again, until it runs what they chose"]


def _command(experiment: Experiment, product: Mapping[str, tuple[str, ...]], more: Sequence[str]) -> str:
    narrowed = [
        f"{key}={','.join(value for value in experiment.sweep[key] if value in product[key])}"
        for key in experiment.sweep
        if set(product[key]) != set(experiment.sweep[key])
    ]
    return shipped.command_line("-m", f"experiment={experiment.name}", *narrowed, *more)


def _agrees(record: Record, key: str, value: str) -> bool:
    identity = record.identity
    if key in GROUPS:
        return record.name(key) == value
    if key.startswith(_WITHOUT_INFLUENCE):
        return True
    if record.untrained and (key == "seed" or key.startswith("recipe.")):
        return True  # an untrained run has no seed and no recipe in its identity: one record serves all
    if key == "data.source" and value != "sample":
        return record.source in ("hub", "local")  # the same texts; a variant of the row
    if key == "seed":
        return record.seed == int(value)
    if key == "init_from":
        if identity.get("init_from") == value:
            return True
        started = str(identity.get("init_from") or "none") != "none"
        return started == (value != "none" and record.name("task") in MNLI_STARTED)  # `auto` acts on them only
    held: Any = identity
    parts = key.split(".")
    if parts[0] == "method" and parts[1] in identity["method"].get("settings", {}):
        parts.insert(1, "settings")
    for part in parts:
        if not isinstance(held, Mapping) or part not in held:
            return False
        held = held[part]
    return same(held, value)


def same(held: Any, value: str) -> bool:
    """Whether a value in a record is the one given on a command line."""
    if isinstance(held, list | tuple):
        words = [word.strip() for word in value.strip().removeprefix("[").removesuffix("]").split(",") if word.strip()]
        return len(words) == len(held) and all(same(*pair) for pair in zip(held, words, strict=True))
    if isinstance(held, bool) or held is None:
        return str(held).lower() == value.lower() or (held is None and value == "null")
    if isinstance(held, int | float):
        try:
            return float(value) == float(held)
        except ValueError:
            return False
    return str(held) == value


def _variant(record: Record) -> str:
    """Return what tells variants apart: everything that can change a number, except the seed."""
    identity = record.identity
    parts = {
        "model": identity["model"],
        "task": identity["task"],
        "method": identity["method"],
        "recipe": None if record.untrained else identity["recipe"],
        "data": identity.get("data"),
        "dtype": identity.get("dtype"),
        "init_from": str(identity.get("init_from") or "none") != "none",
        "init_head": identity.get("init_head", "new"),
    }
    return json.dumps(_flat(parts), sort_keys=True, default=str)


def _differences(key: str, shown: str) -> str:
    ours, theirs = json.loads(key), json.loads(shown)
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return ", ".join(f"{name}={ours.get(name)} (shown: {theirs.get(name)})" for name in names[:4])


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _weight(records: Sequence[Record]) -> tuple[int, int, int, str]:
    finished = {record.seed for record in records if record.status == "finished"}
    latest = max(str(record.origin.get("finished") or "") for record in records)
    return len(finished), -_departures(records[0]), len(records), latest


@functools.cache
def stated_recipe(name: str) -> Recipe | None:
    """Return the current recipe of a name, looked for once."""
    return recipes.find(name)


def _departures(record: Record) -> int:
    """Return in how many settings a run departs from the current recipe: none if it is the chosen one of trials."""
    held = record.identity.get("recipe") or {}
    stated = stated_recipe(str(held.get("name")))
    if stated is None or stated.name.startswith(recipes.DEFAULT):
        return len(held)
    wanted = {**_UNSTATED, **stated.values}
    return sum(not same(held[setting], str(value)) for setting, value in wanted.items() if setting in held)


def _one_per_seed(records: Sequence[Record]) -> list[Record]:
    by_seed: dict[int, Record] = {}
    for record in sorted(
        records, key=lambda r: (r.status == "finished", str(r.origin.get("finished") or ""), r.run_id)
    ):
        by_seed[record.seed] = record
    return [by_seed[seed] for seed in sorted(by_seed)]


def _one_of_each(experiment: Experiment, records: Sequence[Record]) -> None:
    """Refuse a block whose records of one protocol family differ in the protocol, or of one task in the profile.

    A protocol may hold the base of one family of models otherwise than another's (`protocol.base`): there too.
    """
    seen: dict[tuple[str, str], Record] = {}
    for record in records:
        protocol = f"{record.identity['protocol'].get('task')} with {record.identity['model'].get('family')}"
        for part, family in (("protocol", protocol), ("profile", record.name("task"))):
            first = seen.setdefault((part, family), record)
            held, other = first.identity[part], record.identity[part]
            if held == other or (part == "protocol" and held.get("hash") == other.get("hash")):
                continue
            a, b = _flat(held), _flat(other)
            differing = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
            if differing:
                fields = ", ".join(f"{n}: {a.get(n)!r} and {b.get(n)!r}" for n in differing if n != "hash") or "hash"
                raise MixedBlockError(
                    f"experiments/{experiment.name}.yaml: one block holds two {part}s of {family} ({fields}): "
                    f"records {first.run_id} and {record.run_id}. Their numbers do not compare: keep one of them, "
                    f"or write an experiment file for the other that states the {part}"
                )
