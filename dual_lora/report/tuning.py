"""Which of the tried settings each method gets: the best on validation, from the records of trial experiments.

A trial experiment sweeps a setting (a learning rate) at one seed. Test scores are never looked at: only measurements of
the split `validation`, after the last step. The result says for every method which settings were tried, and how many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dual_lora import shipped
from dual_lora.records.schema import Record
from dual_lora.report import selection
from dual_lora.report.definition import Experiment

_GROUPS = ("model", "task", "method")
_LOSS = "loss"  # the measurement of a language model on validation; lower is better


class TuningError(ValueError):
    """Trials from which nothing can be chosen; the message names them and the command that runs them."""


@dataclass(frozen=True)
class Trial:
    """One tried setting with what validation said: None if training diverged or the score is undefined."""

    settings: Mapping[str, str]
    value: float | None


@dataclass(frozen=True)
class Choice:
    """The chosen trial of one model, task and method."""

    model: str
    task: str
    method: str
    metric: str
    chosen: Trial
    trials: tuple[Trial, ...]

    @property
    def at_an_end(self) -> bool:
        """Whether the best value is the smallest or largest of those tried: a better one may be outside that range."""
        try:
            ordered = sorted(self.trials, key=lambda trial: [float(value) for value in trial.settings.values()])
        except ValueError:  # values that are words have no order
            return False
        return len(ordered) > 2 and self.chosen in (ordered[0], ordered[-1])


def choose(experiments: Iterable[Experiment], records: Sequence[Record]) -> list[Choice]:
    """Return the choice of every model, task and method of the experiments.

    A trial that diverged has lost. Raises `TuningError` if an experiment sweeps no setting, if a trial has no record or
    did not end (out of memory, interrupted), which says nothing about its setting, or if no trial finished.
    """
    choices = []
    for experiment in experiments:
        swept = [key for key, values in experiment.sweep.items() if len(values) > 1 and key not in (*_GROUPS, "seed")]
        if not swept or len(experiment.seeds) > 1:
            raise TuningError(
                f"experiments/{experiment.name}.yaml: trials sweep a setting (such as recipe.learning_rate) at one seed"
            )
        missing = selection.missing(experiment, records)
        if missing:
            raise TuningError(
                f"{experiment.name}: {len(missing)} of {len(experiment.runs())} trials have no record; run "
                + "; ".join(selection.commands(experiment, missing))
            )
        groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
        for run in experiment.runs():
            groups.setdefault(tuple(run[key] for key in _GROUPS), []).append(run)
        choices += [_choice(experiment, key, runs, swept, records) for key, runs in groups.items()]
    return choices


def _choice(
    experiment: Experiment,
    key: tuple[str, ...],
    runs: Sequence[Mapping[str, str]],
    swept: Sequence[str],
    records: Sequence[Record],
) -> Choice:
    metric, trials = "", []
    for run in runs:
        found = [record for record in records if selection.belongs(record, run)]
        unsettled = [f"{r.run_id} ({r.status})" for r in found if r.status not in ("finished", "diverged")]
        if unsettled and len(unsettled) == len(found):
            raise TuningError(
                f"{experiment.name}: the trial {dict(run)} did not end: {', '.join(unsettled)}; give the same command "
                "again, with retry=true if a run failed"
            )
        measured = [values for record in found if (values := _validation(record)) is not None]
        if len(measured) > 1:
            raise TuningError(
                f"{experiment.name}: {len(measured)} records belong to the trial {dict(run)}: "
                f"{', '.join(record.run_id for record in found)}; keep one"
            )
        if measured:
            metric = measured[0][0]
        trials.append(Trial({name: run[name] for name in swept}, measured[0][1] if measured else None))
    finished = [trial for trial in trials if trial.value is not None]
    if not finished:
        raise TuningError(f"{experiment.name}: no trial of {' '.join(key)} finished with a score on validation")
    sign = 1 if metric == _LOSS else -1
    best = min(finished, key=lambda trial: sign * (trial.value or 0.0))
    model, task, method = key
    return Choice(model, task, method, metric, chosen=best, trials=tuple(trials))


def _validation(record: Record) -> tuple[str, float] | None:
    """Return the metric and value a finished run is judged by; None if it failed or measured none."""
    if record.status != "finished":
        return None
    for measurement in record.scores.measurements:
        if measurement.split != "validation" or measurement.checkpoint != "last":
            continue
        for metric in (_LOSS, record.scores.headline.metric if record.scores.headline else _LOSS):
            value = measurement.metrics.get(metric)
            if value is not None:
                return metric, value
    return None


def commands(choices: Sequence[Choice], study: Experiment) -> list[str]:
    """Return the sweeps that run `study` with the chosen settings; its runs without trials use their recipes.

    Methods of one task that got the same settings share a sweep. Raises `TuningError` if no choice is of the study.
    """
    several_models = len(study.sweep["model"]) > 1
    grouped: dict[tuple[str, ...], list[str]] = {}
    tried = set()
    for choice in choices:
        group = (choice.model, choice.task, choice.method)
        if all(value in study.sweep[key] for key, value in zip(_GROUPS, group, strict=True)):
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
    rest = [run for run in study.runs() if tuple(run[key] for key in _GROUPS) not in tried]
    return [*lines, *selection.commands(study, rest)]
