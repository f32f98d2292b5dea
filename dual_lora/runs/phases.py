"""Which phase of a run takes most memory of a device: training, validation or scoring, and on which batches.

found = peak(resolved, lengths, card)
found.phase, found.batch, found.bytes
"""

from __future__ import annotations

import dataclasses

from dual_lora import models
from dual_lora.config.schedule import planned_obstacle
from dual_lora.runs import memory
from dual_lora.runs.cards import Card
from dual_lora.runs.kept_tensors import Setup
from dual_lora.runs.resolve import Resolved, adapted_layers
from dual_lora.tasks.lengths import Lengths
from dual_lora.tasks.padding import rounded_count, rounded_length

# As the pipelines of `evaluation/` do on a GPU.
_VALIDATION_TOKENS, _SEQUENCES, _SEQUENCES_OF_SMALL, _SMALL, _CLASSIFIED = 4096, 128, 512, 1e9, 64
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


def peak(resolved: Resolved, lengths: Lengths, card: Card) -> Peak:
    """Return the phase of a run that takes most memory of a device."""
    config, run = resolved.config, setup(resolved, card)
    scored = evaluation(resolved, run, lengths)
    phases = [dataclasses.replace(scored, parts=_split(scored.parts, resolved))]
    if config.method.trains != "nothing":
        graphs = planned_obstacle(config.launch, config.method) is None
        for tokens, learned, first in longest_batches(resolved, lengths):
            batch = _batch(resolved, tokens, learned)
            parts = memory.training(run, batch, graphs=graphs, first=first)
            phases.append(Peak("training", batch, _split(parts, resolved)))
    return max(phases, key=lambda phase: phase.bytes)


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


def _batch(resolved: Resolved, tokens: int, learned: float) -> memory.Batch:
    """Return the micro-batch as it is padded; with few examples it holds shorter texts too."""
    rows, length = resolved.batches.per_device, rounded_length(tokens)
    if resolved.task.head.kind == "classification":
        return memory.Batch(rows, length)
    return memory.Batch(rows, length, rounded_count(min(round(rows * learned), rows * length)))


def evaluation(resolved: Resolved, run: Setup, lengths: Lengths) -> Peak:
    """Return the peak of validation, or of scoring the test items."""
    config = resolved.config
    exact = lengths.exact
    prompt = -(-max(exact.prompt if exact else lengths.prompt[1], 1) // 8) * 8
    if resolved.task.head.kind == "classification":
        rows = config.launch.eval_batch or _CLASSIFIED
        batch = memory.Batch(min(rows, max(lengths.test, 1)), prompt)
        return Peak("evaluation", batch, memory.validation(run, batch))
    found = []
    if config.profile.validation_examples != 0:
        top = lengths.longest(config.profile.validation_examples or lengths.validation or 1)
        top = max(exact.validation if exact else top, 1)
        rows, length = max(1, _VALIDATION_TOKENS // top), -(-top // 8) * 8
        # Batches of shorter texts have more padding: to a multiple of 8 as well.
        batch = memory.Batch(rows, length, round(1.1 * max(rows * length, _VALIDATION_TOKENS)))
        found.append(Peak("validation", batch, memory.validation(run, batch)))
    if config.profile.test_items != 0:
        decoding = config.protocol.decoding
        small = models.count_parameters(run.model, run.head) < _SMALL
        sequences = config.launch.eval_batch or (_SEQUENCES_OF_SMALL if small else _SEQUENCES) // decoding.beams
        batch = memory.Batch(max(1, min(sequences, lengths.test or sequences)), prompt)
        parts = memory.generation(run, batch, decoding.beams, decoding.max_new_tokens)
        found.append(Peak("generation", batch, parts))
    return max(found, key=lambda phase: phase.bytes)


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
