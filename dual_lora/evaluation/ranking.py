"""Log-likelihoods of candidate answers given a prompt: the prompt is computed once, the candidates continue its cache.

    rank(model, tokenizer, prompts, candidates, *, batch_size, on_batch=None)
        -> list[list[float]]      # per prompt, per candidate: log P(candidate | prompt), natural logarithm

`batch_size` counts sequences (candidates), not prompts. A candidate's tokens are those of the whole text, as in
training. Where a token joins the prompt's end to the candidate's start, the comparison begins before that token, so all
candidates are compared from the same point on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from dual_lora.evaluation.generation import pad_id, pad_left, positions
from dual_lora.models.output_positions import logits_at
from dual_lora.tasks.encoding import all_prompt_ids

OnBatch = Callable[[list[int], list[list[float]]], None]
_TOKENS_AT_ONCE = 1024  # 4 × vocabulary bytes each


@dataclass(frozen=True)
class _Question:
    index: int
    shared: list[int]  # what all candidates begin with
    rest: list[list[int]]  # how each candidate continues; at least one token


def rank(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    *,
    batch_size: int,
    on_batch: OnBatch | None = None,
) -> list[list[float]]:
    """Return log-likelihoods in the order of prompts and candidates. Puts the model into eval mode while it works.

    Raises `ValueError` for an empty candidate, or where prompt and candidate cannot fit the model's positions.
    """
    results: dict[int, list[float]] = {}
    questions = _questions(prompts, candidates, tokenizer)
    _check_fits(model, questions)
    questions.sort(key=lambda question: (-len(question.shared), question.index))
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(questions, batch_size):
            values = _rank_batch(model, tokenizer, batch)
            indices = [question.index for question in batch]
            results.update(zip(indices, values, strict=True))
            if on_batch is not None:
                on_batch(indices, values)
    finally:
        model.train(was_training)
    return [results[index] for index in range(len(prompts))]


def _questions(prompts: Sequence[str], candidates: Sequence[Sequence[str]], tokenizer: Any) -> list[_Question]:
    for index, texts in enumerate(candidates):
        if not all(texts):
            raise ValueError(f"item {index}: an empty candidate has no likelihood")
    pairs = list(zip(prompts, candidates, strict=True))
    openings = all_prompt_ids(prompts, tokenizer)
    wholes = iter(all_prompt_ids([prompt + text for prompt, texts in pairs for text in texts], tokenizer))
    return [
        _question(index, prompt, openings[index], [next(wholes) for _ in texts])
        for index, (prompt, texts) in enumerate(pairs)
    ]


def _question(index: int, prompt: str, opening: list[int], wholes: list[list[int]]) -> _Question:
    shared = 0
    # At least one token stays outside: the last shared token's logits predict each candidate's first own token.
    limit = min(len(opening), *(len(whole) - 1 for whole in wholes))
    while shared < limit and all(whole[shared] == opening[shared] for whole in wholes):
        shared += 1
    if shared == 0:
        raise ValueError(f"item {index}: prompt and candidates do not begin with the same token: {prompt[:40]!r}")
    return _Question(index, opening[:shared], [whole[shared:] for whole in wholes])


def _check_fits(model: Any, questions: Sequence[_Question]) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    for question in questions:
        longest = len(question.shared) + max(map(len, question.rest))
        if limit is not None and longest > limit:
            raise ValueError(
                f"item {question.index} has {longest} tokens, but the model has {limit} positions; leave the item out"
            )


def _batches(questions: Sequence[_Question], batch_size: int) -> list[list[_Question]]:
    """Fill batches up to `batch_size` candidates; a question's candidates stay together."""
    batches: list[list[_Question]] = []
    room = 0
    for question in questions:
        if len(question.rest) > room:
            batches.append([])
            room = max(batch_size, len(question.rest))
        batches[-1].append(question)
        room -= len(question.rest)
    return batches


@torch.no_grad()
def _rank_batch(model: Any, tokenizer: Any, batch: Sequence[_Question]) -> list[list[float]]:
    device = next(model.parameters()).device
    padding = pad_id(tokenizer)
    ids, mask = pad_left([question.shared for question in batch], padding, device)
    cache = DynamicCache(config=model.config)
    first = (
        model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        .logits[:, -1]
        .float()
    )

    rows = [rest for question in batch for rest in question.rest]
    owner = torch.tensor([place for place, question in enumerate(batch) for _ in question.rest], device=device)
    longest = max(map(len, rows))
    targets = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows], device=device)
    real = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
    real = real.to(device)

    sums = first.log_softmax(-1)[owner, targets[:, 0]]
    if longest > 1:
        cache.batch_select_indices(owner)
        inputs, wanted = targets[:, :-1], real[:, 1:].flatten().nonzero().squeeze(1)
        whole_mask = torch.cat([mask[owner], real[:, :-1].long()], dim=1)
        with logits_at(model.get_output_embeddings(), wanted, inputs.shape):
            logits = model(
                input_ids=inputs,
                attention_mask=whole_mask,
                position_ids=positions(whole_mask)[:, ids.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            ).logits[0]
        each = _log_probabilities(logits, targets[:, 1:].flatten()[wanted])
        # Not `index_add`, which adds up in any order on a GPU.
        spread = torch.zeros(inputs.numel(), dtype=torch.float64, device=device)
        spread[wanted] = each.double()
        sums = (sums.double() + spread.view(inputs.shape).sum(1)).float()
    values = iter(sums.tolist())
    return [[next(values) for _ in question.rest] for question in batch]


def _log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return log P(target) in float32, (tokens,), from logits (tokens, vocabulary) in parts: each is a float32 copy."""
    parts = zip(logits.split(_TOKENS_AT_ONCE), targets.split(_TOKENS_AT_ONCE), strict=True)
    return torch.cat([-F.cross_entropy(rows.float(), ids, reduction="none") for rows, ids in parts])
