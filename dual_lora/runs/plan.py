"""What a run would be, from arithmetic alone: no weights, no data of the hub, a 70B model at once."""

from __future__ import annotations

import dataclasses
from typing import Any

from dual_lora import methods, models, tasks
from dual_lora.config import MethodConfig, RunConfig
from dual_lora.config.schedule import plan_batches, plan_steps, plan_warmup
from dual_lora.runs.identity import identity
from dual_lora.tasks.base import Task

GIB = 1024**3
_BYTES = {"float32": 4, "bfloat16": 2}
# AdamW keeps two float32 moments beside a float32 weight and its gradient.
_TRAINED_BYTES = 16
# Activations per token and layer, in units of hidden-size elements of two bytes, for a decoder with flash or SDPA
# attention: measured between 30 and 40 on LLaMA shapes; 34 is the count of Korthikanti et al. 2022 (arXiv 2205.05198),
# equation 2, without the attention matrix.
_ACTIVATIONS = 34


def plan(config: RunConfig) -> dict[str, Any]:
    """Return run id, parameters, steps and estimated memory of a run.

    Memory is an estimate of one device's peak without sharding: weights, gradients and optimizer, activations. It is of
    a batch of sequences at the length limit, which a task's texts may never reach.
    Raises `ConfigError` or `DataError`.
    """
    config, budget = at_budget(config)
    task = tasks.load(config)
    methods.check_task(config.method, task.head)
    dtype = models.resolve_dtype(config.model, config.launch.device)
    world_size = config.launch.world_size
    batches = plan_batches(config, world_size)
    total = models.count_parameters(config.model, task.head)
    trainable = _trainable(config.method, config, total)
    examples = planned_examples(config, task)
    steps, per_epoch = plan_steps(config, examples) if config.method.trains != "nothing" else (0, 0)
    held = 4 if config.method.trains in ("everything", "biases") else _BYTES[dtype]
    shape = config.model.dimensions
    length = config.protocol.max_length_tokens or config.recipe.max_length_tokens
    tokens = batches.per_device * length
    layers = 1 if config.launch.gradient_checkpointing else shape.num_layers
    memory = {
        "weights": total * held,
        "trained": trainable * _TRAINED_BYTES,
        "activations": tokens * layers * shape.hidden_size * _ACTIVATIONS * _BYTES[dtype] // 2
        + tokens * shape.vocab_size * (4 + _BYTES[dtype]),
    }
    return {
        "run_id": _run_id(config, dtype, task),
        "dtype": dtype,
        "parameters": total,
        "trainable": trainable,
        "budget": budget,
        "train_examples": examples,
        "steps": steps,
        "steps_per_epoch": per_epoch,
        "warmup_steps": plan_warmup(config, steps) if steps else 0,
        "batches": batches,
        "max_length_tokens": length,
        "memory_bytes": memory,
    }


def _run_id(config: RunConfig, dtype: str, task: Task) -> str:
    """Return the run's id, or why it is not known: a revision that is not pinned has to be looked up on the hub."""
    try:
        fingerprint = models.fingerprint(config.model)
    except models.ModelError:
        return f"(id not known: revision {config.model.revision} of {config.model.repository} is not resolved)"
    named = identity(config, dtype=dtype, model_fingerprint=fingerprint, data_fingerprint=task.fingerprint())
    return str(named["run_id"])


def at_budget(config: RunConfig) -> tuple[RunConfig, methods.Budget | None]:
    """Return the config with the method at the rank nearest `method.budget`, and what that came to (None: no budget).

    Solving again gives the same ranks, so a worker names the run as its parent did. Raises `ConfigError`.
    """
    if config.method.budget is None:
        return config, None
    targets = config.method.settings.get("target_modules") or config.model.target_modules
    method, budget = methods.with_budget(config.method, models.adapted_layer_shapes(config.model, targets))
    return dataclasses.replace(config, method=method), budget


def _trainable(method: MethodConfig, config: RunConfig, total: int) -> int:
    if method.trains == "nothing":
        return 0
    targets = method.settings.get("target_modules") or config.model.target_modules
    return methods.planned_parameters(
        method,
        models.adapted_layer_shapes(config.model, targets),
        total=total,
        biases=methods.count_biases(config.model.dimensions, config.model.family),
    )


def planned_examples(config: RunConfig, task: Task) -> int:
    """Return how many examples a run would train on, from the published counts where the data is on the hub."""
    count = task.published_train_examples() if config.data.source == "hub" else len(task.examples("train"))
    if config.protocol.validation_fraction:
        count -= round(config.protocol.validation_fraction * count)
    return min(count, config.profile.train_examples or count)


def describe(config: RunConfig) -> str:
    """Return the plan as text for a person."""
    facts = plan(config)
    batches, memory = facts["batches"], facts["memory_bytes"]
    budget = facts["budget"]
    share = 100 * facts["trainable"] / facts["parameters"]
    lines = [
        f"run {facts['run_id']}: model={config.model.name} task={config.task.name} method={config.method.name} "
        f"protocol={config.protocol.name} profile={config.profile.name} seed={config.seed}",
        f"  recipe      {config.recipe.name}: learning rate {config.recipe.learning_rate:g}, "
        f"{config.recipe.epochs:g} epochs, warm-up {facts['warmup_steps']} steps",
        f"  parameters  {facts['parameters']:,}, trainable {facts['trainable']:,} ({share:.3f} %) without a head",
        f"  steps       {facts['steps']:,} of batch {batches.global_batch} = {batches.world_size} device(s) × "
        f"{batches.per_device} × {batches.accumulation} accumulated, {facts['train_examples']:,} examples",
        f"  memory      about {sum(memory.values()) / GIB:.1f} GiB per device in {facts['dtype']} before sharding ("
        + ", ".join(f"{name} {value / GIB:.1f}" for name, value in memory.items())
        + f"), for batches full of {facts['max_length_tokens']}-token sequences, the limit",
    ]
    if budget is not None:
        lines.append(f"  budget      {budget_note(budget)}")
    return "\n".join(lines)


def budget_note(budget: methods.Budget) -> str:
    """Return what a budget came to, for the record, the tables and a person."""
    ranks = ", ".join(f"{name}={rank}" for name, rank in budget.ranks.items())
    return f"{budget.wanted:,} wanted, {budget.got:,} trainable at {ranks} ({budget.relative_error:+.2%})"
