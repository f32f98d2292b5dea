#!/usr/bin/env python
"""Choose the learning rate (or what else was swept) of every method by validation, from the records of trials.

    python run.py -m experiment=learning_rates_e2e                                   # the trials
    python scripts/choose_learning_rates.py learning_rates_e2e                       # what they say
    python scripts/choose_learning_rates.py learning_rates_e2e --then nlg_smollm2    # the study's commands, for a shell

Only scores of the split `validation` after the last step are looked at, never a test score. Records of trials may lie
uncommitted in results/records.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Column, Table  # noqa: E402

from dual_lora.report import definition, records, tuning  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 2 where nothing can be chosen."""
    options = _parser().parse_args(arguments)
    try:
        known = definition.read_all(options.experiments)
        for name in [*options.trials, *([options.then] if options.then else [])]:
            if name not in known:
                raise ValueError(f"experiment {name!r} does not exist. Legal: {', '.join(known)}")
        choices = tuning.choose([known[name] for name in options.trials], records.read_all(options.records))
        study = tuning.commands(choices, known[options.then]) if options.then else []
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(stderr=options.then is not None).print(_table(choices))
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
            f"{chosen}{' (at an end of what was tried)' if made.at_an_end else ''}",
            f"{made.metric} {made.chosen.value:.4f}",
            tried,
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="+", metavar="EXPERIMENT", help="an experiment that sweeps a setting")
    parser.add_argument("--then", metavar="EXPERIMENT", help="print the commands of this study with what was chosen")
    parser.add_argument("--records", type=Path, default=ROOT / "results" / "records")
    parser.add_argument("--experiments", type=Path, default=ROOT / "experiments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
