"""Plan every run of experiments/ for one card and write what it takes: results/benchmarks/gpu_hours.json.

    python run.py bench gpu-hours              # experiments that were changed; all of them if configs/ were: minutes
    python run.py bench gpu-hours --all        # after a change of the arithmetic
    python run.py bench gpu-hours --card h100  # for another card

Reads DUAL_LORA_DATA as the experiments do.

Tables and results/report.html show from it what their empty cells would take, and `run.py tables --check` says when
configs/ or an experiment was changed after it. Nothing is measured here: the seconds are those of `plan=true`, by
arithmetic from measured steps and batches (`runs/hours.py`), with the error that recorded runs showed for each model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from dual_lora import shipped
from dual_lora.config.compose import compose
from dual_lora.records import replacing
from dual_lora.report import gpu_hours
from dual_lora.report.definition import Experiment
from dual_lora.report.workspace import Workspace
from dual_lora.runs import hours, plan
from dual_lora.runs.cards import CARDS, GIB, Card
from dual_lora.runs.resolve import Resolved, resolve
from dual_lora.tasks.lengths import planned_lengths


def run(options: argparse.Namespace) -> None:
    """Write the file. Raises `ConfigError`, `DataError` where an experiment cannot be planned on this machine."""
    card = CARDS[options.card]
    experiments = Workspace(shipped.checkout()).experiments()
    made_of = gpu_hours.digests(experiments, shipped.folder("configs"))
    before = gpu_hours.read(options.output, experiments)
    kept = not options.all and before.card == card.name and before.made_of.get("configs") == made_of["configs"]
    seconds: dict[str, Mapping[str, float | str]] = {}
    for name, experiment in experiments.items():
        if kept and before.made_of.get(name) == made_of[name]:
            seconds[name] = before.seconds[name]
            continue
        seconds[name] = seconds_of(experiment, card)
        print(f"{name}: {len(seconds[name])} kinds of runs", flush=True)
    content = {
        "about": f"Made by {gpu_hours.COMMAND}: GPU-seconds of one run, without its neighbours on the card, by "
        "arithmetic from measured steps and batches (dual_lora/runs/hours.py), or why there is no estimate. errors: "
        "|estimate / measured - 1| of recorded runs of a model, median and 90th percentile.",
        "card": card.name,
        "errors": hours.ERRORS,
        "made_of": made_of,
        "seconds": seconds,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / gpu_hours.FILE
    with replacing(path) as place:
        place.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path}: {sum(map(len, seconds.values()))} kinds of runs on one {card.name}")


def seconds_of(experiment: Experiment, card: Card, choices: Mapping[str, str] | None = None) -> dict[str, float | str]:
    """Return the seconds of each run of an experiment that differs in more than `gpu_hours.IRRELEVANT` from others.

    choices: narrows the sweep, values with commas between. Composed with the first value of what is irrelevant.
    """
    first = {name: values[0] for name, values in experiment.sweep.items() if name in gpu_hours.IRRELEVANT}
    first = {name: value for name, value in first.items() if not name.startswith("data.")}
    kept = {name: value.split(",") for name, value in {**first, **(choices or {})}.items()}
    asked = [run for run in experiment.runs() if all(run[name] in values for name, values in kept.items())]
    # In the order of the sweep, which is that of `asked`.
    words = {name: ",".join(dict.fromkeys(run[name] for run in asked)) for name in kept}
    words |= {"init_from": "none"} if "init_from" in first else {}
    cells = compose(["-m", f"experiment={experiment.name}", *(f"{name}={value}" for name, value in words.items())])
    assert len(cells) == len(asked), (experiment.name, len(cells), len(asked))
    return {
        gpu_hours.key(experiment, run): _seconds(resolve(cell, planned=True), card)
        for run, cell in zip(asked, cells, strict=True)
    }


def _seconds(run: Resolved, card: Card) -> float | str:
    lengths = planned_lengths(run.config, run.task)
    if lengths.known == "limit":
        return f"the texts of task={run.task.name} were not measured with the tokenizer of {run.config.model.name}"
    if plan.peak(plan.peaks(run, lengths, card)).bytes > card.room():
        advice = plan.advice(run, lengths, card)
        label, size = run.config.model.label or run.config.model.name, card.memory / GIB
        return f"{label} does not fit one {card.name} of {size:.0f} GiB: {advice}"
    return float(f"{hours.gpu_hours(run, lengths, card) * 3600:.3g}")
