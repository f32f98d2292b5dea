"""A language model's loss on validation examples, in nats per token: on the answers, and on the whole texts.

    losses(model, rows, collator, batch_tokens=4096) -> {"loss": 1.2, "full_sequence_loss": 2.3}, [(14.2, 12), ...]

Unlike the Trainer's curve, which is of the trained objective, these are plain likelihoods: unsmoothed, and the same two
numbers for every method and the base model. Where a protocol trains on whole texts (`loss_on=all`), no
prompt is marked and both numbers are of the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any

import torch
from tqdm.auto import tqdm

from dual_lora.distributed import processes
from dual_lora.evaluation.passes import Passes, evaluating, negative_log_likelihoods, on_device
from dual_lora.models import attention
from dual_lora.models.head import unwrapped
from dual_lora.tasks.encoding import IGNORED
from dual_lora.tasks.padding import rounded_length
from dual_lora.training.loss import NO_INPUTS


@torch.no_grad()
def losses(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
    *,
    batch_tokens: int,
    passes: Passes | None = None,
) -> tuple[dict[str, float], list[tuple[float, int]]]:
    """Return the mean negative log-likelihood per token, natural logarithm, over all rows together.

    Args:
        rows: `input_ids`, `attention_mask` and `labels`, where prompts are marked as ignored if training ignores them.
        collator: pads on the right; for `passes` in few shapes to those of `tasks.padding`.
        batch_tokens: upper bound of a batch, padding included; logits take 2 or 4 × vocabulary bytes per token.
        passes: how they are computed; None: one by one.

    Returns:
        "loss": over the tokens with a label; "full_sequence_loss": over every token but the first.
        For each row, in order, the nats over its tokens with a label, and their number.
    """
    passes = passes or Passes()
    lengths = [len(row["input_ids"]) for row in rows]
    batches = _batches([rounded_length(length) for length in lengths] if passes.few_shapes else lengths, batch_tokens)
    device = next(model.parameters()).device
    found: list[torch.Tensor] = []
    with (
        evaluating(model),
        closing(passes.calls(lambda batch, _: _sums(model, batch))) as computed,
        passes.stream(device),
        attention.without_mask(unwrapped(model)) if passes.few_shapes else nullcontext(),
    ):
        for indices in tqdm(batches, desc="validation", leave=False, disable=None if processes.is_main() else True):
            batch = collator([dict(rows[index]) for index in indices])
            found.append(computed({name: on_device(value, device) for name, value in batch.items()}))
    sums = torch.zeros(len(rows), 2, 2, dtype=torch.float64)  # row × (answer, everything) × (loss, tokens)
    for indices, part in zip(batches, found, strict=True):
        sums[indices] = part.to("cpu", torch.float64)
    (answer, answer_tokens), (whole, tokens) = sums.sum(0).tolist()
    means = {"loss": answer / max(answer_tokens, 1), "full_sequence_loss": whole / max(tokens, 1)}
    return means, [(nats, int(number)) for nats, number in sums[:, 0].tolist()]


def _sums(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return, float32, (rows, 2, 2), each row's loss and number of tokens: of those with a label, and of all."""
    logits = model(**{name: value for name, value in batch.items() if name not in NO_INPUTS}).logits
    # Without their last positions logits would be copied: 2 or 4 × vocabulary bytes for each token.
    targets = batch["input_ids"].roll(-1, dims=1)
    each = negative_log_likelihoods(logits.flatten(0, 1), targets.flatten()).view_as(targets)[:, :-1]
    kinds = (batch["labels"][:, 1:] != IGNORED, batch["attention_mask"][:, 1:].bool())
    return torch.stack([torch.stack([(each * counted).sum(1), counted.sum(1)], dim=1) for counted in kinds], dim=1)


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return the rows' indices, longest first, so that the first batch takes the most memory."""
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if room == 0:
            batches.append([])
            room = max(1, batch_tokens // lengths[index])
        batches[-1].append(index)
        room -= 1
    return batches
