"""Which phase of a run takes most memory of a device: training, validation or scoring, and on which batches.

found = peak(peaks(resolved, lengths, card))
found.phase, found.batch, found.bytes
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from dual_lora import models
from dual_lora.config import evaluation_batches
from dual_lora.config.schedule import planned_obstacle
from dual_lora.runs import memory
from dual_lora.runs.cards import Card
from dual_lora.runs.kept_tensors import Setup
from dual_lora.runs.resolve import Resolved, adapted_layers
from dual_lora.tasks.lengths import Lengths
from dual_lora.tasks.padding import loss_places, rounded_count, rounded_length

TRAINING = "training"
_KEPT_SHARE = 6  # W₀ + ΔW stay if they are at most a sixth of what is free (`tuner/kept_weights.py`)


@dataclasses.dataclass(frozen=True)
class Peak:
    """Bytes by what they are for, when a run takes most: in which phase, on batches of which rows and tokens."""

    phase: str
    batch: memory.Batch
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


def peak(found: Iterable[Peak]) -> Peak:
    """Return the phase that takes most memory."""
    return max(found, key=lambda phase: phase.bytes)


def peaks(resolved: Resolved, lengths: Lengths, card: Card) -> list[Peak]:
    """Return what each phase of a run takes of a device's memory, on each of the batches that may take most."""
    config, run = resolved.config, setup(resolved, card)
    phases = evaluations(resolved, run, lengths)
    if config.method.trains != "nothing":
        graphs = planned_obstacle(config.launch, config.method) is None
        for tokens, learned, first in longest_batches(resolved, lengths):
            batch = _batch(resolved.batches.per_device, rounded_length(tokens), learned, resolved)
            phases.append(Peak(TRAINING, batch, memory.training(run, batch, graphs=graphs, first=first)))
    return [dataclasses.replace(phase, parts=_split(phase.parts, resolved)) for phase in phases]


def setup(resolved: Resolved, card: Card) -> Setup:
    config = resolved.config
    dropout = config.model.dropout
    if dropout is None:  # the checkpoint's
        dropout = 0.0 if config.model.family in ("llama", "qwen2") else 0.1
    run = Setup(
        config.model,
        config.method,
        resolved.task.head,
        adapted_layers(config),
        models.resolve_dtype(config.model, "cuda"),
        checkpointing=config.launch.gradient_checkpointing,
        dropout=dropout,
    )
    weights = run.e * sum(i * o for _, i, o in run.layers)
    keeps = (
        run.adapter == "DualLoraConfig"
        and config.launch.engine in ("single", "torchrun")
        and (run.checkpointing or weights * _KEPT_SHARE <= card.room() - memory.weights(run))
    )
    return dataclasses.replace(run, keeps_weights=keeps)


def longest_batches(resolved: Resolved, lengths: Lengths) -> list[tuple[int, float, bool]]:
    """Return the micro-batches that may take most: tokens of the longest text, labels a row, whether it is the first.

    Grouped by length, every epoch begins with the longest text (transformers' rule, `training/sampling.py`). A run of
    one epoch has no other batch with it, and so none with the optimizer's moments, which are twice the weights in full
    fine-tuning; unless its last batch is filled up with the texts of the first.
    """
    config, exact, size = resolved.config, lengths.exact, resolved.batches.per_device
    everywhere = config.protocol.loss_on == "all"
    longest = max(exact.train if exact else lengths.longest(resolved.train_examples), 1)
    learned: float = exact.learned if exact else longest if everywhere else lengths.learned[1]
    early = config.launch.engine == "deepspeed"  # it makes the moments before the first step
    if early or not config.recipe.length_grouped or resolved.steps > resolved.steps_per_epoch:
        return [(longest, learned, False)]
    rows = exact.rows if exact else resolved.train_examples
    second = max(exact.second if exact else lengths.longest(rows, place=2), 1)
    found = [(longest, learned, True), (second, min(learned, second), False)]
    if rows % resolved.batches.global_batch:
        own = rows % size  # of the micro-batch
        average = lengths.mean() if everywhere else lengths.learned[0]
        found.append((longest, (own * average + (size - own) * learned) / size, False))
    return found


def _batch(rows: int, length: int, learned: float, resolved: Resolved) -> memory.Batch:
    """Return a batch with its labels; with few examples it holds shorter texts too."""
    if resolved.task.head.kind == "classification":
        return memory.Batch(rows, length)
    return memory.Batch(rows, length, loss_places(min(round(rows * learned), rows * length), rows * length))


def evaluations(resolved: Resolved, run: Setup, lengths: Lengths) -> list[Peak]:
    """Return the peaks of validation and of scoring the test items, on the batches that `evaluation/` makes."""
    config, exact = resolved.config, lengths.exact
    parameters = models.count_parameters(run.model, run.head)
    graphs = planned_obstacle(config.launch, config.method) is None
    prompt = rounded_length(max(exact.prompt if exact else lengths.prompt[1], 1))
    if resolved.task.head.kind == "classification":
        rows = evaluation_batches.classified(config.launch)
        batch = memory.Batch(min(rows, max(lengths.test, 1)), prompt)
        if config.method.trains == "nothing":
            return [Peak("evaluation", batch, memory.validation(run, batch))]
        # After every epoch, in the middle of training.
        return [Peak("evaluation", batch, memory.validation_in_training(run, batch, graphs=graphs))]
    found = []
    if config.profile.validation_examples != 0:
        items = lengths.validation or 1
        length = rounded_length(max(exact.validation if exact else lengths.longest(items), 1))
        most = evaluation_batches.validation_tokens(parameters=parameters)
        rows = min(max(1, most // length), items)
        # Batches of shorter texts have more rows.
        batch = memory.Batch(rows, length, max(rows * length, min(most, items * length)))
        found.append(Peak("validation", batch, memory.validation(run, batch)))
        if config.method.trains != "nothing":
            rows = min(evaluation_batches.validated_in_training(config.launch, resolved.batches.per_device), items)
            batch = _batch(rows, length, lengths.learned[1], resolved)
            parts = memory.validation_in_training(run, batch, graphs=graphs)
            found.append(Peak("validation in training", batch, parts))
    items = lengths.test
    if not items:
        return found
    decoding, launch = config.protocol.decoding, config.launch
    for scoring in resolved.task.scorings:
        if scoring == "generate":
            rows = min(evaluation_batches.prompts(launch, decoding.beams, parameters=parameters), items)
            batch = memory.Batch(rows, prompt)
            parts = memory.generation(run, batch, decoding.beams, decoding.max_new_tokens)
            found.append(Peak("generation", batch, parts))
        else:
            own = math.ceil(lengths.learned[1])  # of a long answer
            rows = evaluation_batches.candidates(launch, parameters=parameters)
            rows = min(rows, math.ceil(items * lengths.candidates), evaluation_batches.MOST_TOKENS // (prompt + own))
            own = min(own, math.ceil(evaluation_batches.MOST_LOGITS / rows))
            batch = memory.Batch(rounded_count(rows), prompt + own, rounded_count(rows * own))
            found.append(Peak("ranking", batch, memory.ranking(run, batch, own)))
    return found


def _split(parts: dict[str, int], resolved: Resolved) -> dict[str, int]:
    """Return a device's part of what several share: the optimizer from ZeRO-1 on, gradients from 2, weights from 3."""
    launch, world = resolved.config.launch, resolved.batches.world_size
    stage = 3 if launch.shards_weights else launch.zero_stage
    shared = ("optimizer", "gradients", "weights")[:stage]
    layers = resolved.config.model.dimensions.num_layers
    return {
        # Of the weights two blocks are whole: the one that computes and the next.
        name: size // world + (2 * size // layers if name == "weights" else 0) if name in shared and world > 1 else size
        for name, size in parts.items()
    }
