"""What `python run.py --help` says: the groups of choices, and settings besides. Light to import."""

from __future__ import annotations

import textwrap

from dual_lora import shipped
from dual_lora.config.choices import options

GROUPS = {
    "model": "the checkpoint",
    "task": "what is learned and measured",
    "method": "how the weights are updated",
    "protocol": "what makes numbers comparable (each task has its own file: configs/protocol/<task>/)",
    "profile": "how much of the full run is done: only sizes differ",
    "launch": "where processes start",
    "experiment": "the rows and columns of a table, as a sweep (with -m)",
}
SETTINGS = {
    "seed=0": "a list with -m: seed=0,1,2",
    "data.source=hub": "hub | local (with data.dir=FOLDER) | sample (ships with the package)",
    "model.path=FOLDER": "load the weights from a local folder",
    "plan=true": "print run id, steps, memory, GPU-hours and disk, and stop; plan=h100 and others: for that card",
    "retry=true": "repeat a run that failed",
    "results=FOLDER": "where runs and records go, instead of results/ of the checkout; the other commands take it too",
    "tracking=wandb": "log to Weights & Biases; offline unless a key is set",
    "tracking=tensorboard": "log the training for TensorBoard, in the run's folder",
    "kernel=auto": "auto | fused | generic | reference",
    "init_from=none": "GLUE: none | auto | RUN_ID | path",
    "init_head=new": "new | dense: the head's dense layer comes from init_from too",
    "recipe.learning_rate=…": "any number of the recipe; method.alpha=… any field of the method's PEFT config",
    "launch.parallel=N": "N runs of a sweep at a time on this machine",
}


def help_text() -> str:
    """Return what `python run.py --help` prints."""
    program = shipped.program()
    lines = [
        "Do one run of the Dual LoRA comparison: a model, a task, a method.",
        "",
        f"  {program} model=llama2 task=commonsense method=dual_lora",
        f"  {program} profile=demo",
        f"  {program} -m method=lora,dora,dual_lora seed=0,1,2 model=smollm2 task=e2e profile=quick \\",
        "      data.source=local data.dir=FOLDER",
        "",
        "Choices (GROUP=VALUE):",
    ]
    for group, meaning in GROUPS.items():
        lines += ["", f"  {group}: {meaning}"]
        lines += textwrap.wrap(" ".join(options(group)), 116, initial_indent=" " * 4, subsequent_indent=" " * 4)
    lines += ["", "Settings (KEY=VALUE):", ""]
    lines += [f"  {key:<24} {meaning}" for key, meaning in SETTINGS.items()]
    lines += ["", "--cfg job shows the composed settings of a run without starting it (--resolve fills in references)."]
    return "\n".join(lines)
