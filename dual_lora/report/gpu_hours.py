"""GPU-hours of what a table lacks, from results/benchmarks/gpu_hours.json, which `run.py bench gpu-hours` writes.

A plan of every run takes minutes; a table reads what each takes. What the file does not have is said, not guessed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dual_lora import shipped
from dual_lora.records.schema import Record
from dual_lora.report import selection
from dual_lora.report.definition import Experiment
from dual_lora.report.layout import Waiting

FILE = "gpu_hours.json"
COMMAND = shipped.command_line("bench", "gpu-hours")
# Settings that do not change what a run takes.
IRRELEVANT = ("seed", "recipe.learning_rate", "init_from", "data.dir", "data.source")
UNKNOWN = f"not in results/benchmarks/{FILE}: {COMMAND}"


@dataclass(frozen=True)
class GpuHours:
    """Seconds of each run on one card; of a run without an estimate the reason."""

    card: str = ""
    errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # by model: `runs.hours.ERRORS`
    seconds: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)  # experiment -> run -> seconds
    made_of: Mapping[str, str] = field(default_factory=dict)  # experiment, or "configs" -> digest
    experiments: Mapping[str, Experiment] = field(default_factory=dict)  # for the trials of a block

    def of(self, experiment: Experiment, runs: Iterable[Mapping[str, str]]) -> Waiting:
        """Return what these runs take together."""
        known = self.seconds.get(experiment.name, {})
        names = [(key(experiment, run), run["method"] == "none") for run in runs]
        # An untrained run has neither seed nor rate: one serves all.
        names = [*dict.fromkeys(one for one in names if one[1]), *(one for one in names if not one[1])]
        found = [known.get(name, UNKNOWN) for name, _ in names]
        hours = [seconds / 3600 for seconds in found if not isinstance(seconds, str)]
        reasons = dict.fromkeys(seconds for seconds in found if isinstance(seconds, str))
        return Waiting(len(found), sum(hours), len(found) - len(hours), "; ".join(reasons))

    def of_commands(
        self, experiment: Experiment, missing: Iterable[Mapping[str, str]], records: Iterable[Record]
    ) -> Waiting:
        """Return what the commands of a block's `missing` runs take: with the trials that choose for it."""
        held = list(records)
        found = self.of(experiment, missing)
        for name in experiment.block.trials if found.runs else ():
            trials = self.experiments[name]
            found += self.of(trials, selection.missing(trials, held))
        return found

    def sentence(self, waiting: Waiting, models: Iterable[str]) -> str:
        """Return runs and hours with what they rest on. models: names as in configs/."""
        texts = []
        if waiting.runs > waiting.without:
            texts.append(f"{_runs(waiting.runs - waiting.without)}, about {rounded(waiting.hours)} GPU-hours on one "
                         f"{self.card} ({self.basis(models)})")  # fmt: skip
        if waiting.without:
            texts.append(f"{_runs(waiting.without)} without an estimate ({waiting.why})")
        return "; ".join(texts)

    def basis(self, models: Iterable[str]) -> str:
        """Return what an estimate for these models rests on, and how far off it may be."""
        names = list(dict.fromkeys(models))
        unmeasured = [name for name in names if name not in self.errors]
        if unmeasured:
            return (
                "arithmetic from measured steps and batches; how far off is not known: no whole run of "
                f"{', '.join(unmeasured)} is recorded"
            )
        half, nine = (f"{100 * max(self.errors[name][place] for name in names):.0f} %" for place in (0, 1))
        return (
            f"arithmetic from measured steps and batches; for half of the recorded runs of {', '.join(names)} it was "
            f"within {half} of what they took, for nine in ten within {nine}"
        )


def key(experiment: Experiment, run: Mapping[str, str]) -> str:
    """Return what a run is called in the file: its choices that several runs of its sweep do not share."""
    varied = (name for name, values in experiment.sweep.items() if name not in IRRELEVANT and len(values) > 1)
    return " ".join(f"{name}={run[name]}" for name in varied)


def read(folder: Path, experiments: Mapping[str, Experiment]) -> GpuHours:
    """Return what the file in `folder` says; nothing if there is none. Raises `ValueError` if it cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return GpuHours(experiments=experiments)
    try:
        held: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return GpuHours(
            held["card"],
            {model: (low, high) for model, (low, high) in held["errors"].items()},
            held["seconds"],
            held["made_of"],
            experiments,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); make it again: {shipped.typed(COMMAND)}") from None


def stale(hours: GpuHours, configs: Path) -> list[str]:
    """Say which experiments were changed, or whether any of `configs` was, after the file was made."""
    now = digests(hours.experiments, configs)
    changed = sorted(name for name in now.keys() | hours.made_of.keys() if now.get(name) != hours.made_of.get(name))
    if not changed or not hours.made_of:
        return []
    return [f"results/benchmarks/{FILE} is older than {', '.join(changed)}: run {shipped.typed(COMMAND)}\n"]


def digests(experiments: Mapping[str, Experiment], configs: Path) -> dict[str, str]:
    """Return what the estimates are made of, as hashes: each experiment's sweep, and what they compose of configs/.

    A comment there changes nothing, nor does a model, method or profile that no experiment names.
    """
    found = {name: _digest(json.dumps(experiment.sweep)) for name, experiment in sorted(experiments.items())}
    named = {
        group: {name for experiment in experiments.values() for name in experiment.sweep[group]}
        for group in ("model", "method", "profile")
    }
    named["recipe"] = {*named["model"], "default"}  # files MODEL.FAMILY.yaml
    lines = []
    for path in sorted(configs.rglob("*.yaml")):
        group = path.relative_to(configs).parts[0]
        if group != "experiment" and path.name.partition(".")[0] in named.get(group, {path.name.partition(".")[0]}):
            lines += [
                line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()[:1] not in ("", "#")
            ]
    return {**found, "configs": _digest("\n".join(lines))}


def rounded(hours: float) -> str:
    """Return hours to two digits."""
    if hours < 0.01:
        return "less than 0.01"
    return f"{float(f'{hours:.2g}'):,.{0 if hours >= 10 else 1 if hours >= 1 else 2}f}"


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
