"""Which of the tried settings each method gets: the best on validation, from the records of trial experiments.

A trial experiment sweeps one setting (a learning rate) at two seeds or more, from 100 on, on the validation items that
choose (`protocol.validation_part=select`); what is chosen is reported by other seeds on other items. Test scores are
never looked at: only measurements of the split `validation`, after the last step. Where other settings are swept
besides the learning rate (a budget), each of their values gets a rate of its own.

Where the best value of any method is at an end of its grid, nothing is chosen: the grids of all methods of that model
and task are extended alike, by the same number of values on that side, and the trials that are now missing are named.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dual_lora import shipped
from dual_lora.records.schema import Record
from dual_lora.report import selection
from dual_lora.report.definition import Block, Column, Experiment

GROUPS = ("model", "task", "method")
_LOSS = "loss"  # the measurement of a language model on validation; lower is better
RATE, FIRST_SEED = selection.RATE, selection.FIRST_SEED
_SEEDS = "100,101"
_POINTS, _FACTOR = 5, 2.0  # of a new grid
_MOST = 4  # values a grid may be extended by on one side
PART = "protocol.validation_part"


class TuningError(ValueError):
    """Trials from which nothing can be chosen; the message names them and what to do."""


class Unfinished(TuningError):
    """Trials that have to be run first; `commands` are the sweeps that run them."""

    def __init__(self, message: str, commands: list[str]) -> None:
        super().__init__(message)
        self.commands = commands


@dataclass(frozen=True)
class Trial:
    """One tried setting, after the others that are swept, with what validation said, the mean over the seeds.

    None if training diverged at a seed or a score is undefined.
    """

    settings: Mapping[str, str]
    value: float | None


@dataclass(frozen=True)
class Choice:
    """The chosen trial of one model, task, method and further swept settings; the trials are in the order of theirs."""

    model: str
    task: str
    method: str
    metric: str
    chosen: Trial
    trials: tuple[Trial, ...]

    @property
    def sign(self) -> int:
        """Return 1 where a lower value is better, else -1."""
        return 1 if self.metric == _LOSS else -1

    @property
    def measure(self) -> str:
        """Return in words what was compared, and which direction is better."""
        if self.metric == _LOSS:
            return "plain loss on validation items, nats per answer token without label smoothing, after the last step"
        return f"{self.metric} on the held-out tenth of the training set, after the last step"


def new_grid(middle: float) -> tuple[str, ...]:
    """Return five learning rates around one, a factor of two apart."""
    return tuple(_number(middle * _FACTOR ** (place - _POINTS // 2)) for place in range(_POINTS))


def new_trials(middles: Mapping[tuple[str, str, str], float], words: Mapping[str, str]) -> list[Experiment]:
    """Return trials of a model without an experiment file: for each (model, task, method) a grid around its rate.

    words: further settings as on a command line, which win over `protocol=strict profile=trial seed=100,101`.
    """
    found = []
    for (model, task, method), middle in middles.items():
        part = {} if task.startswith("glue/") else {PART: "select"}
        fixed = {"protocol": "strict", **part, "profile": "trial", "seed": _SEEDS, **words}
        sweep = {"model": (model,), "task": (task,), "method": (method,), RATE: new_grid(middle)}
        # A list in brackets is one value.
        sweep |= {key: (value,) if value.startswith("[") else tuple(value.split(",")) for key, value in fixed.items()}
        found.append(Experiment("", sweep, Block(block="trials", columns=(Column(label="validation"),))))
    return found


def choose(experiments: Iterable[Experiment], records: Sequence[Record]) -> list[Choice]:
    """Return the choice of every model, task and method of the experiments.

    A trial that diverged has lost. Raises `TuningError` for trials that may not choose (one seed, seeds or items that
    report), one that did not end (out of memory, interrupted), which says nothing about its setting, or where none
    finished; `Unfinished` if trials have no record yet, those of an extended grid among them.
    """
    experiments = [experiment for experiment in experiments if _check(experiment)]
    choices: list[Choice] = []
    waiting: list[Unfinished] = []
    for model, task in dict.fromkeys(pair for one in experiments for pair in _pairs(one)):
        own = [
            dataclasses.replace(one, sweep={**one.sweep, "model": (model,), "task": (task,)})
            for one in experiments
            if (model, task) in _pairs(one)
        ]
        try:
            choices += _settled(own, records)
        except Unfinished as found:
            waiting.append(found)
    if waiting:
        raise Unfinished("; ".join(map(str, waiting)), [line for one in waiting for line in one.commands])
    return choices


def _pairs(experiment: Experiment) -> list[tuple[str, str]]:
    return list(itertools.product(experiment.sweep["model"], experiment.sweep["task"]))


def _settled(experiments: Sequence[Experiment], records: Sequence[Record]) -> list[Choice]:
    """Return the choices of all methods of one model and task, none at an end of its grid."""
    below = above = 0
    while True:
        wider = [_extended(experiment, below, above) for experiment in experiments]
        lacking = {
            place: missing
            for place, experiment in enumerate(wider)
            if (missing := selection.missing(experiment, records))
        }
        where = " ".join(f"{key}={experiments[0].sweep[key][0]}" for key in ("model", "task"))
        if lacking:
            count = sum(map(len, lacking.values()))
            why = f"the best of a grid is at its end, so all are extended ({below} below, {above} above): "
            raise Unfinished(
                f"{where}: {why if below or above else ''}{count} trials have no record",
                [_command(experiments[place], missing) for place, missing in lacking.items()],
            )
        choices = [choice for experiment in wider for choice in _choices(experiment, records)]
        at_low = [made.method for made in choices if made.chosen is made.trials[0]]
        at_high = [made.method for made in choices if made.chosen is made.trials[-1]]
        if not (at_low or at_high):
            return choices
        below, above = below + bool(at_low), above + bool(at_high)
        if max(below, above) > _MOST:
            raise TuningError(
                f"{where}: the best value is still at an end after {_MOST} more on that side "
                f"({', '.join(at_low + at_high)}); start from another middle"
            )


def _swept(experiment: Experiment) -> list[str]:
    return [key for key, values in experiment.sweep.items() if len(values) > 1 and key not in (*GROUPS, "seed")]


def _tuned(experiment: Experiment) -> str:
    """Return the setting that is chosen: the learning rate, or the only one that is swept. Raises `TuningError`."""
    swept = _swept(experiment)
    if RATE not in swept and len(swept) != 1:
        what = f"experiments/{experiment.name}.yaml" if experiment.name else "trials"
        raise TuningError(f"{what}: trials sweep one setting, or {RATE}; these sweep {', '.join(swept) or 'none'}")
    return RATE if RATE in swept else swept[0]


def _check(experiment: Experiment) -> bool:
    """Refuse trials that may not choose. Raises `TuningError`."""
    what = f"experiments/{experiment.name}.yaml" if experiment.name else "trials"
    tuned = _tuned(experiment)
    values = experiment.sweep[tuned]
    try:
        numbers = sorted(map(float, values))
    except ValueError:
        raise TuningError(f"{what}: {tuned}={','.join(values)}: only numbers have a grid with ends") from None
    if len(numbers) < 3 or numbers[0] <= 0:
        raise TuningError(f"{what}: {tuned}={','.join(values)}: a grid has three values or more, all above 0")
    if len(experiment.seeds) < 2 or min(experiment.seeds) < FIRST_SEED:
        raise TuningError(
            f"{what}: seed={','.join(map(str, experiment.seeds))}: trials need two seeds or more, from {FIRST_SEED} "
            f"on; the seeds below report what was chosen. Give seed={_SEEDS}"
        )
    written = [task for task in experiment.sweep["task"] if not task.startswith("glue/")]
    if written and experiment.sweep.get(PART) != ("select",):
        raise TuningError(
            f"{what}: task={','.join(written)}: trials look at validation items that never report; give {PART}=select"
        )
    return True


def _extended(experiment: Experiment, below: int, above: int) -> Experiment:
    """Return the experiment with its grid sorted and longer by so many values, each by the ratio at that end."""
    tuned = _tuned(experiment)
    values = sorted(experiment.sweep[tuned], key=float)
    first, second, *_, last_but_one, last = (float(value) for value in (*values[:2], *values[-2:]))
    low = [_number(first * (first / second) ** step) for step in range(below, 0, -1)]
    high = [_number(last * (last / last_but_one) ** step) for step in range(1, above + 1)]
    return dataclasses.replace(experiment, sweep={**experiment.sweep, tuned: (*low, *values, *high)})


def _number(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}"


def _command(experiment: Experiment, missing: Sequence[Mapping[str, str]]) -> str:
    """Return the sweep over all that is missing; a run among them that has a record is skipped when it is given."""
    asked = {key: dict.fromkeys(run[key] for run in missing) for key in (*GROUPS, *_swept(experiment), "seed")}
    fixed = [] if experiment.name else [k for k in experiment.sweep if k not in asked]
    words = [f"experiment={experiment.name}"] if experiment.name else []
    words += [f"{key}={','.join(values)}" for key, values in asked.items()]
    words += [f"{key}={','.join(experiment.sweep[key])}" for key in fixed]
    return shipped.command_line("-m", *words)


def _choices(experiment: Experiment, records: Sequence[Record]) -> list[Choice]:
    """Return the choice of each method, and of each value of what else is swept, of trials that all have records."""
    tuned = _tuned(experiment)
    others = [key for key in _swept(experiment) if key != tuned]
    groups: dict[tuple[str, ...], dict[str, list[Mapping[str, str]]]] = {}
    for run in experiment.runs():
        groups.setdefault(tuple(run[key] for key in (*GROUPS, *others)), {}).setdefault(run[tuned], []).append(run)
    choices = []
    for (model, task, method, *rest), by_value in groups.items():
        fixed = dict(zip(others, rest, strict=True))
        metric, trials = "", []
        for value, runs in by_value.items():
            found = [_measured(experiment, run, records) for run in runs]
            metric = next((name for name, _ in filter(None, found)), metric)
            numbers = [one[1] for one in found if one is not None]
            mean = statistics.fmean(numbers) if len(numbers) == len(runs) else None
            trials.append(Trial({**fixed, tuned: value}, mean))
        finished = [trial for trial in trials if trial.value is not None]
        if not finished:
            where = " ".join([f"model={model} task={task} method={method}", *map("=".join, fixed.items())])
            raise TuningError(f"no trial of {where} finished at every seed")
        sign = 1 if metric == _LOSS else -1
        best = min(finished, key=lambda trial: sign * (trial.value or 0.0))
        choices.append(Choice(model, task, method, metric, chosen=best, trials=tuple(trials)))
    return choices


def _measured(experiment: Experiment, run: Mapping[str, str], records: Sequence[Record]) -> tuple[str, float] | None:
    """Return what one trial's record says, None if it diverged. Raises `TuningError` if it did not end."""
    found = [record for record in records if selection.belongs(record, run)]
    unsettled = [f"{r.run_id} ({r.status})" for r in found if r.status not in ("finished", "diverged")]
    if unsettled and len(unsettled) == len(found):
        raise TuningError(
            f"the trial {dict(run)} did not end: {', '.join(unsettled)}; give the same command again, with retry=true "
            "if a run failed"
        )
    measured = [values for record in found if (values := _validation(record)) is not None]
    if len(measured) > 1:
        raise TuningError(
            f"{len(measured)} records belong to the trial {dict(run)}: {', '.join(r.run_id for r in found)}; keep one"
        )
    return measured[0] if measured else None


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
