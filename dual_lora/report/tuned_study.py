"""The runs of a study with what its trials chose."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

from dual_lora import shipped
from dual_lora.report import selection
from dual_lora.report.definition import Experiment
from dual_lora.report.tuning import GROUPS, Choice, TuningError


def of_study(experiments: Iterable[Experiment], study: Experiment, known: Iterable[Experiment]) -> list[Experiment]:
    """Return the trials of the methods that `study` runs, as experiments of those methods alone.

    known: all experiments. Those with the study's candidates confirm the same winner against other methods, whose
    trials are looked at too: else their grids would grow apart. Raises `TuningError` if no trial is of such a method.
    """
    candidates = study.block.candidates
    together = [study, *(one for one in known if candidates and one.block.candidates == candidates)]
    run = {method for one in together for method in one.sweep["method"]}
    found = []
    for experiment in experiments:
        methods = tuple(name for name in experiment.sweep["method"] if name in run)
        if methods:
            found.append(dataclasses.replace(experiment, sweep={**experiment.sweep, "method": methods}))
    if not found:
        raise TuningError(f"{study.name} runs no method of the trials; its methods: {','.join(study.sweep['method'])}")
    return found


def winners(choices: Sequence[Choice], candidates: Collection[str]) -> list[Choice]:
    """Return the choices, of the candidates of one model and task the one with the best trial alone."""
    best: dict[tuple[str, str], Choice] = {}
    for choice in (choice for choice in choices if choice.method in candidates):
        held = best.setdefault((choice.model, choice.task), choice)
        if choice.sign * (choice.chosen.value or 0.0) < held.sign * (held.chosen.value or 0.0):
            best[choice.model, choice.task] = choice
    return [choice for choice in choices if choice.method not in candidates or choice in best.values()]


def commands(choices: Sequence[Choice], study: Experiment) -> list[str]:
    """Return the sweeps that run `study` with the chosen settings; its runs without trials use their recipes.

    Methods of one task that got the same settings share a sweep; of the study's candidates the best one alone is run.
    Raises `TuningError` if no choice is of the study.
    """
    several_models = len(study.sweep["model"]) > 1
    grouped: dict[tuple[str, ...], list[str]] = {}
    tried = {
        (choice.model, choice.task, choice.method) for choice in choices if choice.method in study.block.candidates
    }
    for choice in winners(choices, study.block.candidates):
        group = (choice.model, choice.task, choice.method)
        settings = {**dict(zip(GROUPS, group, strict=True)), **choice.chosen.settings}
        if all(value in study.sweep.get(key, (value,)) for key, value in settings.items()):
            words = [f"{name}={value}" for name, value in choice.chosen.settings.items()]
            where = [*([f"model={choice.model}"] if several_models else []), f"task={choice.task}"]
            grouped.setdefault((*where, *words, f"recipe.trials={len(choice.trials)}"), []).append(choice.method)
            tried.add(group)
    if not tried:
        raise TuningError(f"{study.name} has no run with a model, task and method of the trials")
    lines = [
        shipped.command_line("-m", f"experiment={study.name}", f"method={','.join(methods)}", *key)
        for key, methods in grouped.items()
    ]
    rest = [run for run in study.runs() if tuple(run[key] for key in GROUPS) not in tried]
    return [*lines, *selection.commands(study, rest)]
