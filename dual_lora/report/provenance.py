"""Where a run's numbers come from: what it was set to and who said so, what made it, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dual_lora import shipped
from dual_lora.config.choices import flat
from dual_lora.records.schema import Record
from dual_lora.report import selection
from dual_lora.report.definition import Experiment

SECTIONS = ("model", "task", "method", "recipe", "protocol", "profile", "data")
_NOT_SETTINGS = ("run_id", "seed", *SECTIONS)
_TITLES = {"label", "hash"}
_ABSENT = object()


def sections(record: Record) -> dict[str, Any]:
    """Return all that can change the run's numbers, part by part; under "" what is in no part."""
    identity = record.identity
    rest = {key: value for key, value in identity.items() if key not in _NOT_SETTINGS}
    return {part: identity[part] for part in SECTIONS if identity.get(part) is not None} | {"": rest}


def settings(record: Record) -> dict[str, Any]:
    """Return the same as dotted name -> value."""
    return {name: value for part, held in sections(record).items() for name, value in dotted(part, held).items()}


def dotted(part: str, held: Any) -> dict[str, Any]:
    """Return dotted name -> value of one part, without what is only for display."""
    values = flat({part: held} if part else held)
    return {name: value for name, value in values.items() if name.rpartition(".")[2] not in _TITLES}


def off_recipe(record: Record) -> dict[str, tuple[Any, Any]]:
    """Return setting -> (what the current recipe of this combination says, what the run had), where they differ."""
    recipe = record.identity.get("recipe")
    stated = selection.stated_recipe(str(recipe.get("name"))) if recipe else None
    if stated is None or record.untrained:
        return {}
    found = {}
    for setting, value in stated.values.items():
        group, _, name = setting.partition(".")
        keys = [f"recipe.{setting}"] if not name else [f"{group}.settings.{name}", setting]
        held = next((had for key in keys if (had := _at(record.identity, key)) is not _ABSENT), _ABSENT)
        if held is not _ABSENT and not _agree(held, value):
            found[setting] = (value, held)
    return found


def _at(values: Any, name: str) -> Any:
    """Return the value of a dotted name, as `flat` has it."""
    for part in name.split("."):
        values = values.get(part, _ABSENT) if isinstance(values, Mapping) else _ABSENT
    return _ABSENT if isinstance(values, Mapping) and values else values


def _agree(held: Any, stated: Any) -> bool:
    return list(held) == list(stated) if isinstance(held, list) else selection.same(held, str(stated))


def different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names whose values differ, or that one of the two lacks."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def command(record: Record, experiments: Iterable[Experiment]) -> str:
    """Return the command that does the run again: its part of an experiment, else what was typed then."""
    for experiment in experiments:
        run = selection.run_of(record, experiment)
        if run is not None:
            chosen = f" recipe.learning_rate={record.identity['recipe']['learning_rate']}"
            return selection.commands(experiment, [run])[0] + (chosen if experiment.block.trials else "")
    typed = str(record.origin.get("command") or "")
    words = typed.removeprefix("python run.py").removeprefix("dual-lora").strip()
    return f"{shipped.PROGRAM} {words}" if words else ""


def maker(record: Record) -> dict[str, str]:
    """Return what code and machine made the run, in the order a reader asks, and what was typed."""
    told, ran = record.origin, record.execution
    found = {
        "commit": _commit(told),
        "card": f"{ran.get('world_size') or 1} × {ran['device']}" if ran.get("device") else "",
        "versions": _versions(told),
        "typed": str(told.get("command") or ""),
    }
    again = told.get("rescored")
    if again:
        found["scored again by"] = f"{_commit(again)}, {_versions(again)}"
    return {name: text for name, text in found.items() if text}


def _commit(told: Mapping[str, Any]) -> str:
    return f"{told.get('commit') or ''}{' with uncommitted changes' if told.get('dirty') else ''}"


def _versions(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in (told.get("versions") or {}).items())
