"""What a composed config resolves to on this machine: derived once, printed by `plan=true`, handed on to the end.

resolved = resolve(config)                    # everything that can be checked in seconds is checked
resolved = resolve(config, planned=True)      # for a plan: no torch, no file of the hub
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Literal

from dual_lora import methods, models, records, tasks
from dual_lora.config import ConfigError, RunConfig, legal_values
from dual_lora.config.schedule import Batches, check_warmup, plan_batches, plan_steps, plan_warmup, planned_obstacle
from dual_lora.runs import warm_start
from dual_lora.runs.identity import identity
from dual_lora.runs.warm_start import WarmStart
from dual_lora.tasks import splits
from dual_lora.tasks.base import Head, Task
from dual_lora.tasks.splits import Items

# On a CPU. A language model's logits (tokens × vocabulary) take gigabytes; a classifier's batch only gets faster: 2.0
# core-seconds for 32 examples of RTE with MiniLM and Dual LoRA in batches of 16, 2.45 in batches of 4.
MIN_LENGTH_TOKENS = 8  # of an encoder's input
_CPU_BATCH = {"causal_lm": 4, "classification": 16}


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A run that passed every cheap check, with everything that follows from its config, this machine and the data.

    `items` is None and `identity` may be empty in a plan: the data is not read, and a revision that is not pinned is
    not looked up. `steps` counts the items; examples that are left out for their length shorten the training itself.
    """

    config: RunConfig  # with the ranks of its budget, the base as published, on a CPU with a batch that fits
    task: Task
    device: Literal["auto", "cpu", "cuda"]  # in a plan as requested, perhaps "auto"
    dtype: str
    batches: Batches
    items: Items | None
    train_examples: int
    steps: int  # 0: nothing is trained
    steps_per_epoch: int
    warmup_steps: int
    budget: methods.Budget | None  # None: the ranks are given
    start: WarmStart | None  # weights of another run to start from
    identity: dict[str, Any]  # empty if a plan cannot know it
    unnamed: str = ""  # the reason

    @property
    def run_id(self) -> str:
        return str(self.identity["run_id"]) if self.identity else f"(id not known: {self.unnamed})"

    @property
    def folder(self) -> Path:
        return records.run_folder(self.config.results, self.run_id)

    @property
    def record_path(self) -> Path:
        return records.record_path(self.config.results, self.run_id)


def resolve(config: RunConfig, *, planned: bool = False) -> Resolved:
    """Check everything that can be checked in seconds, derive what follows and name the run.

    Raises `ConfigError` or `DataError`: a bad setting, a missing model, data that cannot be used.
    """
    device = config.launch.device if planned else resolve_device(config)
    plan_batches(config, config.launch.world_size)
    planned_obstacle(config.launch, config.method)
    check_warmup(config.recipe)
    if not planned:
        methods.check(config.method)  # imports PEFT
    config, budget = at_budget(as_published(config))
    methods.check_ranks(config.method, adapted_layers(config))
    if not planned:
        check_writable(Path(config.results))
        models.check_available(config.model)
    task = tasks.load(config)
    methods.check_task(config.method, task.head)
    check_smoothing(task.head, config.recipe.label_smoothing)
    if config.recipe.head_learning_rate is not None and task.head.kind != "classification":
        raise ConfigError(f"recipe.head_learning_rate is for a classification head, which task={task.name} has not")
    check_headline(task, config)
    if not planned:
        methods.check_settings(config.method, config.model, task.head)
    config = _bounded_batch(config, device, _CPU_BATCH[task.head.kind])
    # Every file is read once now: a damaged one is found before any training.
    items = None if planned else splits.select(task, config)
    examples = len(items.train) if items is not None else splits.planned_train_examples(task, config)
    steps, per_epoch = plan_steps(config, examples) if config.method.trains != "nothing" else (0, 0)
    dtype = models.resolve_dtype(config.model, _planned_device(device) if planned else device)
    start, named, unnamed = _named(config, dtype, task, planned)
    return Resolved(
        config=config,
        task=task,
        device=device,
        dtype=dtype,
        batches=plan_batches(config, config.launch.world_size),
        items=items,
        train_examples=examples,
        steps=steps,
        steps_per_epoch=per_epoch,
        warmup_steps=plan_warmup(config, steps) if steps else 0,
        budget=budget,
        start=start,
        identity=named,
        unnamed=unnamed,
    )


def _named(config: RunConfig, dtype: str, task: Task, planned: bool) -> tuple[WarmStart | None, dict[str, Any], str]:
    """Return the warm start, the identity and, if a plan can know neither, the reason."""
    try:
        fingerprint = models.fingerprint(config.model)
        start = warm_start.resolve(config)
    except models.ModelError:
        if planned:
            return None, {}, f"revision {config.model.revision} of {config.model.repository} is not resolved"
        raise
    except ConfigError:
        if planned:
            return None, {}, f"init_from={config.init_from} is not on this machine"
        raise
    data = task.fingerprint()
    init_from = start.sha256 if start else "none"
    named = identity(config, dtype=dtype, model_fingerprint=fingerprint, data_fingerprint=data, init_from=init_from)
    return start, named, ""


def check_smoothing(head: Head, label_smoothing: float) -> None:
    """Refuse a label smoothing that has no meaning. Raises `ConfigError`."""
    if label_smoothing and head.regression:
        raise ConfigError(
            f"recipe.label_smoothing={label_smoothing}: this task is a regression and has no classes to smooth over; "
            "use recipe.label_smoothing=0"
        )


def as_published(config: RunConfig) -> RunConfig:
    """Return the config with what its protocol leaves to the model's family and to the recipe.

    The dtype and dropout of the base, unless given, and how often training is interrupted to validate. Raises
    `ConfigError` if the recipe does not say the latter.
    """
    protocol, model = config.protocol, config.model
    if protocol.validation_every_steps == "recipe":
        every = config.recipe.validation_every_steps
        if every is None:
            raise ConfigError(
                f"protocol.validation_every_steps=recipe: {config.recipe.name} has none, as its published script looks "
                "once an epoch, or there is no script; give a number of steps, or null for once an epoch"
            )
        protocol = dataclasses.replace(protocol, validation_every_steps=every)
    base = protocol.base.get(model.family)
    if base is not None:
        dtype = base.dtype if model.dtype == "auto" and base.dtype is not None else model.dtype
        dropout = base.dropout if model.dropout is None else model.dropout
        model = dataclasses.replace(model, dtype=dtype, dropout=dropout)
    return dataclasses.replace(config, protocol=protocol, model=model)


def check_headline(task: Task, config: RunConfig) -> None:
    """Refuse a headline that the run would not measure, and find that out before it trains. Raises `ConfigError`."""
    for name, asked in [("headline", config.task.headline), *(("metrics", metric) for metric in config.task.metrics)]:
        if asked not in task.metrics:
            raise ConfigError(f"task.{name}: {task.name} does not measure {asked!r}{legal_values(asked, task.metrics)}")
    protocol, trains = config.protocol, config.method.trains != "nothing"
    checkpoints = {"last": True, "best_loss": config.profile.validation_examples != 0}
    if task.head.kind == "classification":
        checkpoints = {"last": True, "best_dev": True, "best_heldout": protocol.validation_fraction is not None}
    legal = [name for name, measured in checkpoints.items() if measured]
    if trains and config.profile.test_items != 0 and protocol.checkpoint not in legal:
        raise ConfigError(
            f"protocol.checkpoint={protocol.checkpoint}: under these settings task={task.name} measures no such "
            f"checkpoint{legal_values(protocol.checkpoint, legal)}"
        )
    cut_off = protocol.max_length_tokens or config.recipe.max_length_tokens
    if task.head.kind == "classification" and cut_off < MIN_LENGTH_TOKENS:
        raise ConfigError(
            f"recipe.max_length_tokens={cut_off}: an encoder needs at least {MIN_LENGTH_TOKENS} for its special tokens"
        )


def at_budget(config: RunConfig) -> tuple[RunConfig, methods.Budget | None]:
    """Return the config with the method at the rank nearest `method.budget`, and the budget's result (None: no budget).

    Solving again gives the same ranks, so a worker names the run as its parent did. Raises `ConfigError`.
    """
    if config.method.budget is None:
        return config, None
    method, budget = methods.with_budget(config.method, adapted_layers(config))
    return dataclasses.replace(config, method=method), budget


def adapted_layers(config: RunConfig) -> list[models.LayerShape]:
    """Return the layers that the method adapts, none if it is no adapter. Raises `ConfigError` for those it has not."""
    if config.method.trains != "adapter":
        return []
    layers = models.adapted_layer_shapes(config.model, config.method.settings.get("target_modules"))
    chosen = config.method.settings.get("layers_to_transform")
    if chosen is None:
        return layers
    wanted, blocks = chosen if isinstance(chosen, list | tuple) else [chosen], config.model.dimensions.num_layers
    if not wanted or not all(isinstance(block, int) and 0 <= block < blocks for block in wanted):
        raise ConfigError(
            f"method.layers_to_transform={chosen}: model={config.model.name} has the blocks 0 to {blocks - 1}; name "
            "some in a list, or null for all"
        )
    numbers = (re.search(r"\.(\d+)\.", layer.name) for layer in layers)
    return [layer for layer, n in zip(layers, numbers, strict=True) if n is not None and int(n[1]) in wanted]


def budget_note(budget: methods.Budget) -> str:
    """Return a budget's result as text, for the record, the tables and the screen."""
    ranks = ", ".join(f"{name}={rank}" for name, rank in budget.ranks.items())
    return f"{budget.wanted:,} wanted, {budget.got:,} trainable at {ranks} ({budget.relative_error:+.2%})"


def _bounded_batch(config: RunConfig, device: str, largest: int) -> RunConfig:
    """Choose a small per-device batch on a CPU, unless one is given."""
    share = config.recipe.global_batch // max(1, config.launch.world_size)
    if device != "cpu" or config.launch.per_device_batch is not None or share < 1:
        return config
    batch = max(size for size in range(1, largest + 1) if share % size == 0)
    return dataclasses.replace(config, launch=dataclasses.replace(config.launch, per_device_batch=batch))


def _planned_device(asked: str) -> str:
    """Return where a run would compute, without torch: a run's dtype, and so its name, depends on it."""
    return "cpu" if asked == "auto" and not _has_card() else asked


def _has_card() -> bool:
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def resolve_device(config: RunConfig) -> Literal["cpu", "cuda"]:
    """Return where a run computes. Raises `ConfigError` if CUDA is requested and not available."""
    import torch

    asked = config.launch.device
    if config.launch.name == "slurm" and "SLURM_JOB_ID" not in os.environ:
        return "cpu" if asked == "cpu" else "cuda"  # of the compute node: this machine only submits
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "launch.device=cuda, but torch finds no CUDA device; use launch.device=cpu (or auto), or check the driver "
            f"and that torch {torch.__version__} is a CUDA build"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def check_writable(results: Path) -> None:
    """Raise `ConfigError` if records or runs could not be written at the end."""
    for folder in (results / "records", results / "runs"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe.{os.getpid()}"
            probe.write_text("", encoding="utf-8")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"results={results}: {folder} cannot be written ({error}); use results=FOLDER, or make it writable"
            ) from None
