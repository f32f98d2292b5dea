"""What the sweeps of some command lines take, for whoever is about to paste them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dual_lora.config import ConfigError, DataError
from dual_lora.config.compose import compose


def cost_of(commands: Sequence[str]) -> str:
    """Return the GPU-hours of sweeps (`python run.py -m ...`) together, in a line for a person."""
    from dual_lora.runs import plan
    from dual_lora.runs.cards import planned_card
    from dual_lora.runs.hours import accuracy, rounded
    from dual_lora.runs.resolve import resolve

    runs = []
    try:
        for command in commands:
            words = shlex.split(command, comments=True)
            if "-m" in words:
                runs += [resolve(cell, planned=True) for cell in compose(words[words.index("-m") :])]
        hours = plan.sweep_hours(runs)
    except (ConfigError, DataError) as error:
        return f"GPU-hours are not known: {error}"
    told = accuracy(run.config.model.name for run in runs)
    return f"{len(runs)} runs, about {rounded(hours):g} GPU-hours on {planned_card(True)[0].name} ({told})"
