"""What a run would be, by arithmetic alone: no weights, no data from the hub; instant also for a 70B model."""

from __future__ import annotations

from typing import Any

from dual_lora import methods, models
from dual_lora.config.schedule import planned_obstacle
from dual_lora.runs.resolve import Resolved, budget_note

GIB = 1024**3
_BYTES = {"float32": 4, "bfloat16": 2}
# AdamW keeps two float32 moments in addition to a float32 weight and its gradient.
_TRAINED_BYTES = 16
# Activations per token and layer, in units of hidden-size elements of two bytes, for a decoder with flash or SDPA
# attention: measured between 30 and 40 on LLaMA shapes; 34 is the count of Korthikanti et al. 2022 (arXiv 2205.05198),
# equation 2, without the attention matrix.
_ACTIVATIONS = 34


def plan(resolved: Resolved) -> dict[str, Any]:
    """Return parameters and estimated memory of a run.

    Memory is an estimate of one device's peak without sharding: weights, gradients and optimizer, activations. It
    assumes a batch of sequences at the length limit, which a task's texts may never reach.
    """
    config = resolved.config
    total = models.count_parameters(config.model, resolved.task.head)
    trainable = _trainable(resolved, total)
    held = 4 if config.method.trains in ("everything", "biases") else _BYTES[resolved.dtype]
    shape = config.model.dimensions
    length = config.protocol.max_length_tokens or config.recipe.max_length_tokens
    tokens = resolved.batches.per_device * length
    layers = 1 if config.launch.gradient_checkpointing else shape.num_layers
    memory = {
        "weights": total * held,
        "trained": trainable * _TRAINED_BYTES,
        "activations": tokens * layers * shape.hidden_size * _ACTIVATIONS * _BYTES[resolved.dtype] // 2
        + tokens * shape.vocab_size * (4 + _BYTES[resolved.dtype]),
    }
    return {"parameters": total, "trainable": trainable, "max_length_tokens": length, "memory_bytes": memory}


def _trainable(resolved: Resolved, total: int) -> int:
    method, model = resolved.config.method, resolved.config.model
    if method.trains == "nothing":
        return 0
    targets = method.settings.get("target_modules") or model.target_modules
    return methods.planned_parameters(
        method,
        models.adapted_layer_shapes(model, targets),
        total=total,
        biases=models.count_biases(model),
    )


def describe(resolved: Resolved) -> str:
    """Return the plan as text for a person."""
    config, batches, facts = resolved.config, resolved.batches, plan(resolved)
    memory = facts["memory_bytes"]
    share = 100 * facts["trainable"] / facts["parameters"]
    lines = [
        f"run {resolved.run_id}: model={config.model.name} task={config.task.name} method={config.method.name} "
        f"protocol={config.protocol.name} profile={config.profile.name} seed={config.seed}",
        f"  recipe      {config.recipe.name}: learning rate {config.recipe.learning_rate:g}, "
        f"{config.recipe.epochs:g} epochs, warm-up {resolved.warmup_steps} steps",
        f"  parameters  {facts['parameters']:,}, trainable {facts['trainable']:,} ({share:.3f} %) without a head",
        f"  steps       {resolved.steps:,} of batch {batches.global_batch} = {batches.world_size} device(s) × "
        f"{batches.per_device} × {batches.accumulation} accumulated, {resolved.train_examples:,} examples",
        f"  memory      about {sum(memory.values()) / GIB:.1f} GiB per device in {resolved.dtype} before sharding ("
        + ", ".join(f"{name} {value / GIB:.1f}" for name, value in memory.items())
        + f"), for batches of {facts['max_length_tokens']}-token sequences, the limit",
    ]
    no_graphs = planned_obstacle(config.launch, config.method)
    if no_graphs is not None and config.method.trains != "nothing":
        lines.append(f"  graphs      none: {no_graphs}")
    if resolved.budget is not None:
        lines.append(f"  budget      {budget_note(resolved.budget)}")
    return "\n".join(lines)
