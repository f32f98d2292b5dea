"""Choose the learning rate (or another swept setting) of every method by validation scores, from the records of trials.

    python run.py -m experiment=learning_rates_e2e              # the trials
    python run.py tune learning_rates_e2e                       # what they say
    python run.py tune learning_rates_e2e --then nlg_smollm2    # the study's commands, for a shell

Only scores of the split `validation` after the last step are looked at, never a test score. Records of trials need not
be committed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.table import Column, Table

from dual_lora import shipped
from dual_lora.commands.parser import Parser
from dual_lora.report import definition, records, terminal, tuning


def options(parser: Parser) -> None:
    parser.add_argument("trials", nargs="+", metavar="EXPERIMENT", help="an experiment that sweeps a setting")
    parser.add_argument("--then", metavar="EXPERIMENT", help="print the commands of this study with what was chosen")
    parser.add_argument("--records", type=Path, default=shipped.home() / "results" / "records")
    parser.add_argument("--experiments", type=Path, default=shipped.folder("experiments"))


def run(options: argparse.Namespace) -> int:
    """Return 0. Raises `ValueError` where nothing can be chosen."""
    known = definition.read_all(options.experiments)
    trials = [definition.named(known, name) for name in options.trials]
    then = definition.named(known, options.then) if options.then else None
    held, refused = records.read_all(records.files(options.records))
    for text in refused:
        print(f"refused: {text}", file=sys.stderr)
    choices = tuning.choose(trials, held)
    study = tuning.commands(choices, then) if then else []
    terminal.console(stderr=options.then is not None).print(_table(choices))
    if study:
        print("\n".join(study))
    return 0


def _table(choices: list[tuning.Choice]) -> Table:
    names = ("model", "task", "method", "chosen", "validation", "tried")
    swept = dict.fromkeys(name for made in choices for name in made.chosen.settings)
    # Folded: a rate cut to "0.0…" would say nothing.
    table = Table(*(Column(name, overflow="fold") for name in names), title=f"chosen: {', '.join(swept)}")
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
            f"{chosen}{' (the smallest or largest value tried)' if made.at_an_end else ''}",
            f"{made.metric} {made.chosen.value:.4f}",
            tried,
        )
    return table
