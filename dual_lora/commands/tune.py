"""Choose the learning rate of every method by validation scores, from the records of trials.

    python run.py tune model=smollm2 task=e2e method=lora,dora,dual_lora         # a new model: the grids of its trials
    python run.py tune model=smollm2 task=e2e method=lora,dora,dual_lora | sh    # … run; again, until it has chosen

Five rates a factor of two apart around the rate of each method's recipe, at seeds 100 and 101, on the validation items
that never report (protocol=strict protocol.validation_part=select profile=trial; any other setting that is given wins).
The command prints the sweeps that are missing. Once all are there it says what each method gets; where the best rate of
any method is at an end of its grid, nothing is chosen and the grids of all methods grow alike.

    python run.py tune EXPERIMENT                        # trials that a file of experiments/ states, by the same rules
    python run.py tune EXPERIMENT --then nlg_smollm2     # the study's commands with what was chosen, for a shell
    python run.py tune ... results=FOLDER                # trials are read from there, and run there

With `--then` only methods that the study runs are looked at: no other one makes their grids grow. Studies that confirm
the best of the same candidates are looked at together, so that they confirm the same one.

Only scores of the split `validation` after the last step are looked at, never a test score: a language model's plain
loss per answer token (not the smoothed one that it trains on), a classifier's score on the held-out tenth. Records of
trials need not be committed.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.table import Column, Table

from dual_lora import shipped
from dual_lora.commands.parser import Parser
from dual_lora.config import ConfigError
from dual_lora.config.compose import compose_one
from dual_lora.config.words import SEARCHPATH
from dual_lora.report import definition, own_files, records, terminal, tuned_study, tuning
from dual_lora.runs.sweep_cost import cost_of


def options(parser: Parser) -> None:
    parser.add_argument(
        "trials",
        nargs="+",
        metavar="EXPERIMENT|KEY=VALUE",
        help="experiments, or model= task= method=",
    )
    parser.add_argument("--then", metavar="EXPERIMENT", help="print the commands of this study with what was chosen")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="another results folder")
    parser.take_searchpath()
    parser.add_argument("--experiments", type=Path, default=shipped.folder("experiments"))


def run(options: argparse.Namespace) -> int:
    """Return 0 if every method has its setting, 1 if trials have to be run first. Raises `ValueError` for others."""
    known = definition.read_all(options.experiments)
    words = [word for word in options.trials if "=" in word]
    trials = [definition.named(known, name) for name in options.trials if name not in words]
    if words and trials:
        raise ConfigError(f"{' '.join(options.trials)}: give names of experiments, or settings of a new model's trials")
    trials = trials or _new_trials(words, options.searchpath)
    then = definition.named(known, options.then) if options.then else None
    results = options.results or shipped.results()
    held, refused = records.read_all(results / "records")
    terminal.name_refused(refused)
    try:
        choices = tuning.choose(tuned_study.of_study(trials, then, known.values()) if then else trials, held)
    except tuning.Unfinished as found:
        print(f"{found}; run", file=sys.stderr)
        lacking = [f"{command}{_more(trials, options.searchpath, results)}" for command in found.commands]
        print(*map(shipped.typed, lacking), sep="\n")
        print(cost_of(lacking), file=sys.stderr)
        return 1
    study = tuned_study.commands(choices, then) if then else []
    terminal.console(stderr=options.then is not None).print(_table(choices))
    if then and study:
        more = _more([then], options.searchpath, results)
        study = [f"{command}{more}" for command in study]
        print(*map(shipped.typed, study), sep="\n")
        print(cost_of(study), file=sys.stderr)
    return 0


def _more(experiments: Iterable[definition.Experiment], searchpath: str | None, results: Path) -> str:
    """Return what each command needs besides: the results folder, and where own files are."""
    words = [*shipped.word_for(results), *own_files.words(experiments, searchpath, results / "runs")]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _new_trials(words: list[str], searchpath: str | None) -> list[definition.Experiment]:
    """Return the trials of a model, a task and some methods, each around the rate of its recipe."""
    given = dict(word.split("=", 1) for word in words)
    missing = [key for key in ("model", "task", "method") if key not in given]
    if missing:
        raise ConfigError(f"{' '.join(words)}: trials of a new model need {', '.join(f'{key}=' for key in missing)}")
    names = [given.pop(key).split(",") for key in ("model", "task", "method")]
    own = [f"{SEARCHPATH}{searchpath}"] if searchpath else []
    middles = {}
    for model, task, method in itertools.product(*names):
        cell = compose_one([f"model={model}", f"task={task}", f"method={method}", *own])
        if cell.method.trains == "nothing":
            raise ConfigError(f"method={method} trains nothing: it has no rate")
        middles[model, task, method] = cell.recipe.learning_rate
    return tuning.new_trials(middles, given)


def _table(choices: list[tuning.Choice]) -> Table:
    names = ("model", "task", "method", "chosen", "validation", "tried")
    swept = dict.fromkeys(name for made in choices for name in made.chosen.settings)
    # Folded: a rate cut to "0.0…" would say nothing.
    by = "; ".join(dict.fromkeys(made.measure for made in choices))
    title = f"chosen: {', '.join(swept)}, by {by}; means of {tuning.FIRST_SEED} and later seeds"
    table = Table(*(Column(name, overflow="fold") for name in names), title=title)
    for made in choices:
        tried = ", ".join(
            f"{' '.join(trial.settings.values())}: {'none' if trial.value is None else f'{trial.value:.4f}'}"
            for trial in made.trials
        )
        chosen = " ".join(made.chosen.settings.values())
        table.add_row(
            made.model,
            made.task,
            made.method,
            chosen,
            f"{made.metric} {made.chosen.value:.4f}",
            tried,
        )
    return table
