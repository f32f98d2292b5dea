"""A language model's loss on validation examples, in nats per token: on the answers, and on the whole texts.

    losses(model, rows, collator, batch_tokens=4096) -> {"loss": 1.2, "full_sequence_loss": 2.3}, [(14.2, 12), ...]

Unlike the Trainer's curve, which is of the trained objective, these are plain likelihoods: unsmoothed, and the same two
numbers for every method and the base model. Where a protocol trains on whole texts (`loss_on=all`), no
prompt is marked and both numbers are of the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from dual_lora.distributed import processes
from dual_lora.tasks.encoding import IGNORED


@torch.no_grad()
def losses(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
    *,
    batch_tokens: int,
) -> tuple[dict[str, float], list[tuple[float, int]]]:
    """Return the mean negative log-likelihood per token, natural logarithm, over all rows together.

    Args:
        rows: `input_ids`, `attention_mask` and `labels`, where prompts are marked as ignored if training ignores them.
        batch_tokens: upper bound of a batch, padding included; its float32 logits take 4 × vocabulary bytes per token.

    Returns:
        "loss": over the tokens with a label; "full_sequence_loss": over every token but the first.
        For each row, in order, the nats over its tokens with a label, and their number.
    """
    batches = _batches([len(row["input_ids"]) for row in rows], batch_tokens)
    device = next(model.parameters()).device
    sums = torch.zeros(len(rows), 2, 2, dtype=torch.float64)  # row × (answer, everything) × (loss, tokens)
    was_training = model.training
    model.eval()
    try:
        for indices in tqdm(batches, desc="validation", leave=False, disable=None if processes.is_main() else True):
            collated = collator([dict(rows[index]) for index in indices])
            batch = {key: value.to(device) for key, value in collated.items()}
            labels = batch["labels"][:, 1:]
            inputs = {name: value for name, value in batch.items() if name not in ("labels", "shift_labels")}
            logits = model(**inputs).logits[:, :-1]
            targets = batch["input_ids"][:, 1:]
            each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
            for place, counted in enumerate((labels != IGNORED, batch["attention_mask"][:, 1:].bool())):
                found = torch.stack([(each * counted).sum(1), counted.sum(1)], dim=1)
                sums[indices, place] = found.to("cpu", torch.float64)
    finally:
        model.train(was_training)
    (answer, answer_tokens), (whole, tokens) = sums.sum(0).tolist()
    means = {"loss": answer / max(answer_tokens, 1), "full_sequence_loss": whole / max(tokens, 1)}
    return means, [(nats, int(number)) for nats, number in sums[:, 0].tolist()]


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
