"""Where the methods and tasks of an experiment are that do not ship: what a printed command needs to run it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dual_lora.config import ConfigError
from dual_lora.config.choices import options
from dual_lora.config.words import SEARCHPATH
from dual_lora.records.storage import UNREADABLE
from dual_lora.report.definition import Experiment

_GROUPS = ("model", "task", "method")


def words(experiments: Iterable[Experiment], given: str | None, runs: Path) -> list[str]:
    """Return `hydra.searchpath=…` for the commands of these experiments, if it is given or they need it.

    given: what the user said; else what a run of such a method or task in the folder `runs` was given. Raises
    `ConfigError` if neither says it.
    """
    if given:
        return [f"{SEARCHPATH}{given}"]
    names = [(group, name) for one in experiments for group in _GROUPS for name in one.sweep.get(group, ())]
    own = [(group, name) for group, name in dict.fromkeys(names) if name not in options(group)]
    if not own:
        return []
    found = _of_runs(own, runs)
    if found is None:
        told = ", ".join(f"{group}={name}" for group, name in own)
        raise ConfigError(
            f"{told}: not in configs/. Give {SEARCHPATH}[file://FOLDER] here too, for the commands that are printed "
            "(docs/own_method.md)"
        )
    return [f"{SEARCHPATH}{found}"]


def _of_runs(own: Sequence[tuple[str, str]], runs: Path) -> str | None:
    """Return the search path of the newest run of one of these names."""
    for path in sorted(runs.glob("*/config.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if config.get("searchpath") and any(config[group]["name"] == name for group, name in own):
                return str(config["searchpath"])
        except (OSError, *UNREADABLE):
            continue
    return None
