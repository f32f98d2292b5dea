"""What step 1 must be, computed by hand: the tokens of the first global batch, its loss, every gradient.

Of the project only a copy of the model is used, and of it only the logits of one example at a time: nothing is padded
and no mask is needed. Everything else is written out here.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dual_lora.config import RunConfig
from tests.known_answers import raw_data
from tests.known_answers.words import Ids, Words, one_text, two_texts

LENGTH_WINDOW = 50  # global batches that are sorted by length together, at most


@dataclass(frozen=True)
class Row:
    """One example as the model reads it."""

    inputs: dict[str, Ids]
    label: int | float | None = None  # encoders
    first: int = 0  # causal models: the first token that is learned (the very first has nothing before it)

    @property
    def length(self) -> int:
        return len(self.inputs["input_ids"])

    @property
    def learned(self) -> int:
        """How many tokens have a loss."""
        return self.length - max(self.first, 1)


def training_rows(config: RunConfig, folder: Path, words: Words) -> list[Row]:
    """Return all training rows of a run in the order that the sampler counts them in."""
    limit = config.recipe.max_length_tokens
    return _training_rows(config.task.name, config.protocol.name, config.model.family == "gpt2", limit, folder, words)


@functools.cache
def _training_rows(name: str, protocol: str, is_gpt2: bool, cut_off: int, folder: Path, words: Words) -> list[Row]:
    paper = protocol == "paper"
    if name.startswith("glue/"):
        items = raw_data.glue(folder, name.removeprefix("glue/"))
        if protocol == "strict":  # a tenth is held out
            kept = sorted(
                set(range(len(items))) - set(random.Random(42).sample(range(len(items)), round(len(items) / 10)))
            )
            items = [items[place] for place in kept]
        limit = 128 if protocol == "restricted" else cut_off
        rows = []
        for item in items:
            frame = one_text if len(item.texts) == 1 else two_texts
            rows.append(Row(frame(words, *item.texts, limit), item.label))
        return rows
    if name == "commonsense":
        texts = raw_data.commonsense(folder, published=paper)
        if not paper:
            texts = list(dict.fromkeys(texts))
        size = min(120 if paper else 512, len(texts) // 5)  # split off for validation; a fifth of so few
        order = np.random.default_rng(42).permutation(len(texts))
        texts = [texts[place] for place in order[size:]]
        return _causal(texts, words, learn_all=paper, limit=256 if paper else cut_off, cut=paper)
    # GPT-2's own end token stands between input and reference; other models read the separator of the text files.
    separator = "" if is_gpt2 else " ||"
    read = {"webnlg": raw_data.webnlg, "dart": raw_data.dart, "e2e": raw_data.e2e if paper else raw_data.e2e_official}
    texts = read[name](folder, separator)
    rows = _causal(texts, words, learn_all=False, limit=cut_off, cut=paper,
                   between=(words.end,) if is_gpt2 else ())  # fmt: skip
    return rows


def _causal(
    texts: Sequence[raw_data.Text],
    words: Words,
    *,
    learn_all: bool,
    limit: int,
    cut: bool,
    between: tuple[int, ...] = (),
) -> list[Row]:
    """Return start token, text, end token; the end token is learned as any other token of the answer.

    between: ids that stand between the two parts, which are then read apart; without, the text is read as one.
    """
    rows = []
    for text in texts:
        head = [*words.start, *words.ids(text.before), *between]
        whole = [*head, *words.ids(text.answer)] if between else [*words.start, *words.ids(text.before + text.answer)]
        assert learn_all or whole[: len(head)] == head, f"{text.before[-20:]!r} and {text.answer[:20]!r} share a token"
        ids = [*whole, words.end]
        if len(ids) > limit and not cut:
            continue
        rows.append(Row({"input_ids": ids[:limit]}, first=0 if learn_all else len(head)))
    return rows


def first_batch(rows: Sequence[Row], config: RunConfig) -> list[Row]:
    """Return the rows of the first optimizer step, in their order.

    The seed's permutation, cut into windows of whole global batches, a quarter of the data at most; in each the longest
    first; and the longest row of all changes places with the first one.
    """
    size, count = config.recipe.global_batch, len(rows)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed * 1_000_003)).tolist()
    if config.recipe.length_grouped:
        window = size * max(1, min(count // (4 * size), LENGTH_WINDOW))
        windows = [
            sorted(order[at : at + window], key=lambda place: -rows[place].length) for at in range(0, count, window)
        ]
        longest = max(range(len(windows)), key=lambda at: rows[windows[at][0]].length)
        windows[0][0], windows[longest][0] = windows[longest][0], windows[0][0]
        order = [place for part in windows for place in part]
    return [rows[place] for place in order[:size]]


def step(
    model: nn.Module, batch: Sequence[Row], smoothing: float, *, regression: bool
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a global batch and its gradient for every trained tensor of `model`.

    Causal: the mean over all learned tokens of the batch of (1 − ε) · (−log p(token)) + ε · (mean of −log p over the
    vocabulary). Encoders: the mean over rows of −log p(class), or of the squared error.
    """
    model.eval().zero_grad()
    total = 0.0
    learned = sum(row.learned for row in batch)
    for row in batch:
        inputs = {name: torch.tensor([ids]) for name, ids in row.inputs.items()}
        logits = model(**inputs).logits[0]
        if row.label is None:
            loss = _tokens_loss(logits, row, smoothing) / learned
        elif regression:
            loss = (logits[0] - row.label) ** 2 / len(batch)
        else:
            loss = (torch.logsumexp(logits, 0) - logits[int(row.label)]) / len(batch)
        loss.backward()
        total += float(loss.detach())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return total, gradients


def _tokens_loss(logits: Tensor, row: Row, smoothing: float) -> Tensor:
    first = max(row.first, 1)
    targets = torch.tensor(row.inputs["input_ids"][first:])
    seen_before = logits[first - 1 : -1]  # what the model says of a token after reading the ones before it
    logs = seen_before - torch.logsumexp(seen_before, 1, keepdim=True)
    right = -logs[torch.arange(len(targets)), targets]
    return ((1 - smoothing) * right - smoothing * logs.mean(1)).sum()
