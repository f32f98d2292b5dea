"""Log-likelihoods of candidate answers given a prompt: the prompt is computed once, the candidates continue its cache.

    rank(model, tokenizer, prompts, candidates, *, batch_size, on_batch=None)
        -> list[list[float]]      # per prompt, per candidate: log P(candidate | prompt), natural logarithm

`batch_size` counts sequences (candidates), not prompts. A candidate's tokens are those of the whole text, as in
training. Where a token joins the prompt's end to the candidate's start, the comparison begins before that token, so all
candidates are compared from the same point on. A batch has prompts of similar length, and of these the ones with
similar candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from dual_lora.config.evaluation_batches import MOST_LOGITS, MOST_TOKENS
from dual_lora.evaluation.generation import pad_id, positions
from dual_lora.evaluation.passes import Passes, evaluating, negative_log_likelihoods, on_device
from dual_lora.models import attention
from dual_lora.models.head import unwrapped
from dual_lora.models.output_positions import logits_at
from dual_lora.tasks.encoding import all_prompt_ids
from dual_lora.tasks.padding import rounded_count, rounded_length

OnBatch = Callable[[list[int], list[list[float]]], None]


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
    passes: Passes | None = None,
) -> list[list[float]]:
    """Return log-likelihoods in the order of prompts and candidates. Puts the model into eval mode while it works.

    Raises `ValueError` for an empty candidate, or where prompt and candidate cannot fit the model's positions.
    """
    passes = passes or Passes()
    results: dict[int, list[float]] = {}
    questions = _questions(prompts, candidates, tokenizer)
    _check_fits(model, questions)
    questions.sort(key=lambda one: (-rounded_length(len(one.shared)), -max(map(len, one.rest)), one.index))
    device, padding = next(model.parameters()).device, pad_id(tokenizer)

    def read(batch: list[_Question], values: Tensor) -> None:
        each = iter(values.tolist())  # waits for the device
        indices, rows = [one.index for one in batch], [[next(each) for _ in one.rest] for one in batch]
        results.update(zip(indices, rows, strict=True))
        if on_batch is not None:
            on_batch(indices, rows)

    waiting: list[tuple[list[_Question], Tensor]] = []  # of the batch before, computed while the next one is made
    with (
        evaluating(model),
        closing(passes.calls(lambda batch, _: _log_likelihoods(model, batch))) as computed,
        passes.stream(device),
        torch.no_grad(),
    ):
        for batch in _batches(questions, batch_size):
            given = _padded(batch, padding, few_shapes=passes.few_shapes)
            values = computed({name: on_device(tensor, device) for name, tensor in given.items()})
            if waiting:
                read(*waiting.pop())
            waiting.append((batch, values))
        if waiting:
            read(*waiting.pop())
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
    """Fill batches up to `batch_size` candidates, or fewer that are long; a question's candidates stay together."""
    batches: list[list[_Question]] = []
    rows = shared = rest = 0
    for question in questions:
        longest = max(map(len, question.rest))
        rows, shared, rest = rows + len(question.rest), max(shared, len(question.shared)), max(rest, longest)
        full = rows > batch_size or rows * (shared + rest) > MOST_TOKENS or rows * rest > MOST_LOGITS
        if full or not batches:
            batches.append([])
            rows, shared, rest = len(question.rest), len(question.shared), longest
        batches[-1].append(question)
    return batches


def _padded(batch: Sequence[_Question], padding: int, *, few_shapes: bool) -> dict[str, Tensor]:
    """Return a batch's tensors, int64, for `_log_likelihoods`.

    ids, mask: what candidates share, padded on the left, (prompts, longest). owner: each candidate's prompt.
    targets: the candidates' own tokens, padded on the right, (candidates, longest). real: which of `targets[:, 1:]` are
    tokens. places: where these are, flattened; one past the end for none.
    """
    prompts, rows = [one.shared for one in batch], [rest for one in batch for rest in one.rest]
    owner = [place for place, one in enumerate(batch) for _ in one.rest]
    longest, after_first = max(map(len, prompts)), max(map(len, rows)) - 1
    if few_shapes:
        longest, after_first = rounded_length(longest), rounded_length(after_first) if after_first else 0
        prompts = prompts + [[padding]] * (rounded_count(len(prompts)) - len(prompts))
        rows = rows + [[padding]] * (rounded_count(len(rows)) - len(rows))
        owner = owner + [0] * (len(rows) - len(owner))
    places = [row * after_first + place for row, rest in enumerate(rows) for place in range(len(rest) - 1)]
    if few_shapes and after_first:
        places += [len(rows) * after_first] * (rounded_count(len(places)) - len(places))
    return {
        "ids": torch.tensor([[padding] * (longest - len(row)) + row for row in prompts]),
        "mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts]),
        "owner": torch.tensor(owner),
        "targets": torch.tensor([row + [padding] * (after_first + 1 - len(row)) for row in rows]),
        "real": torch.tensor([[1] * (len(row) - 1) + [0] * (after_first + 1 - len(row)) for row in rows]),
        "places": torch.tensor(places, dtype=torch.int64),
    }


def _log_likelihoods(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the sum of each candidate's log-probabilities, float32, (candidates,). batch: see `_padded`."""
    ids, mask, owner, targets, real, places = batch.values()
    cache = DynamicCache(config=model.config)
    first = model(
        input_ids=ids,
        attention_mask=_seen(model, mask, ids.shape[1]),
        position_ids=positions(mask),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    sums = first.float().log_softmax(-1)[owner, targets[:, 0]]
    if targets.shape[1] == 1:
        return sums
    cache.batch_select_indices(owner)
    inputs, wanted = targets[:, :-1], targets[:, 1:].flatten()
    whole_mask = torch.cat([mask[owner], real], dim=1)
    kept = places.clamp(max=len(wanted) - 1)
    with logits_at(model.get_output_embeddings(), kept, inputs.shape):
        logits = model(
            input_ids=inputs,
            attention_mask=_seen(model, whole_mask, inputs.shape[1]),
            position_ids=positions(whole_mask)[:, ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        ).logits[0]
    # Not `index_add`, which adds up in any order on a GPU.
    spread = torch.zeros(len(wanted) + 1, dtype=torch.float64, device=ids.device)
    spread[places] = -negative_log_likelihoods(logits, wanted[kept]).double()
    return (sums.double() + spread[:-1].view(inputs.shape).sum(1)).float()


def _seen(model: Any, mask: Tensor, queries: int) -> Tensor:
    """Return the mask of the last `queries` positions: whole where the model takes it so, with graphs and without."""
    return attention.causal_mask(mask, queries) if attention.needs_no_mask(unwrapped(model)) else mask
