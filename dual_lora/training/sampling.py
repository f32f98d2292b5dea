"""The order of the training examples: a function of seed and epoch alone.

The Trainer's own samplers draw from the global random state and group by length within what one process sees of a step,
so another number of processes, or a resume, could order the examples differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.state import GradientState
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from dual_lora.distributed import processes
from dual_lora.training.loss import loss_positions


class StepSampler(Sampler[int]):
    """Yields example indices such that each run of `global_batch` of them is one optimizer step.

    An epoch that does not end with a full batch is filled up with its first examples: the recipe's global batch holds
    for every step, and every process gets as many rows as the others.

    lengths: tokens of each example, to put examples of like lengths into a step (transformers' rule: within windows of
        50 batches); None for a plain shuffle.
    """

    def __init__(self, size: int, global_batch: int, seed: int, lengths: Sequence[int] | None) -> None:
        self.size, self.global_batch, self.seed, self.lengths = size, global_batch, seed, lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch; see `Epochs` for where its call does not arrive."""
        self.epoch = epoch

    def at_step(self, step: int) -> int:
        """Return the epoch that the optimizer step after `step` completed ones belongs to."""
        return step // (len(self) // self.global_batch)

    def __len__(self) -> int:
        return -(-self.size // self.global_batch) * self.global_batch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.lengths is None:
            order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        else:
            lengths: Any = list(self.lengths)
            order = get_length_grouped_indices(lengths, self.global_batch, generator=generator)
        for place in range(len(self)):
            yield order[place % self.size]


def own_rows(batch: dict[str, Any], state: GradientState, rows: int) -> dict[str, Any]:
    """Return a validation batch without what accelerate fills up the last one of each process with: rows once more.

    The Trainer counts a batch's loss once for each row that is no repetition, and so takes their mean over all of them.
    A process with repetitions alone keeps one row, which the Trainer does not count: others may need its forward pass.

    rows: of a batch of one process.
    """
    if processes.world_size() == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return batch
    kept = min(max(state.remainder - processes.rank() * rows, 1), rows)
    found = {name: value[:kept] for name, value in batch.items() if name != "loss_positions"}
    return found | ({"loss_positions": loss_positions(found["shift_labels"])} if "loss_positions" in batch else {})


class Epochs(TrainerCallback):
    """Tells the sampler its epoch.

    The Trainer's own call is lost in a group that resumes within an epoch: accelerate wraps the sampler once more to
    skip what was trained, and the examples of the first epoch would come again.
    """

    def __init__(self, sampler: StepSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._sampler.set_epoch(self._sampler.at_step(state.global_step))
