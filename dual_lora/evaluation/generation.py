"""Replies of a causal model: batched, left-padded with a mask, sorted by length; returned in the order of the prompts.

    generate(model, tokenizer, prompts, decoding, *, batch_size, complete=None, on_batch=None, static=None)
        -> list[str]      # the new text of each prompt, special tokens removed, not stripped

    complete(index, reply) -> bool       greedy only: this reply needs no further token (its reading is settled)
    on_batch(indices, replies)           called after each batch, so that a kill loses at most one
    static                               how one-token steps become graphs (`static_decoding`); None: they do not

    pad_left(rows, pad_id, device=None) -> (input_ids, attention_mask)
    pad_id(tokenizer) -> int             # also for tokenizers without a padding token

A reply does not depend on its batch: padding is masked and positions count from the first real token. In float32 the
text is the same for every batch size (tested); in bfloat16 the order of sums differs and can change a close choice.
With the same batches replies are the same whenever they are computed, with graphs and without.
Beams share the prompt: it is computed once and its cache is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dual_lora.config import DecodingConfig
from dual_lora.evaluation.passes import evaluating, ordered_attention
from dual_lora.evaluation.static_decoding import StaticDecoding
from dual_lora.models.head import unwrapped
from dual_lora.tasks.encoding import all_prompt_ids

Complete = Callable[[int, str], bool]
OnBatch = Callable[[list[int], list[str]], None]


def pad_id(tokenizer: Any) -> int:
    """Return an id to pad with. Which one does not matter: padding is masked."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def pad_left(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, both (rows, longest), int64, the padding on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*[pad] * (longest - len(row)), *row] for row in rows], dtype=torch.long, device=device)
    mask = torch.arange(longest) >= longest - torch.tensor([[len(row)] for row in rows])
    return ids, mask.long().to(device)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Return position ids that count from the first real token; padding has position 0. Shape as the mask."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    decoding: DecodingConfig,
    *,
    batch_size: int,
    complete: Complete | None = None,
    on_batch: OnBatch | None = None,
    static: StaticDecoding | None = None,
) -> list[str]:
    """Return the reply to each prompt, in the prompts' order. Puts the model into eval mode while it works.

    Raises `ValueError` if a prompt and its reply cannot fit the model's positions.
    """
    replies: dict[int, str] = {}
    rows = all_prompt_ids(prompts, tokenizer)
    check_fits(model, rows, decoding.max_new_tokens)
    # Longest first: memory runs out at once or never, and the time left is overestimated rather than underestimated.
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    stream = nullcontext() if static is None else static.stream(next(model.parameters()).device)
    with evaluating(model), ordered_attention(), stream:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = [rows[index] for index in indices]
            texts = _generate_batch(model, tokenizer, batch, indices, decoding, complete, static)
            replies.update(zip(indices, texts, strict=True))
            if on_batch is not None:
                on_batch(indices, texts)
    return [replies[index] for index in range(len(prompts))]


def check_fits(model: Any, rows: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Refuse prompts that with their replies have more tokens than the model has positions. Raises `ValueError`."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for index, row in enumerate(rows):
        if not row:
            raise ValueError(f"prompt {index} has no tokens; a prompt needs at least one")
        if limit is not None and len(row) + new_tokens > limit:
            raise ValueError(
                f"prompt {index} has {len(row)} tokens and the reply may have {new_tokens}, but the model has "
                f"{limit} positions; lower protocol.decoding.max_new_tokens or leave the item out"
            )


def _generate_batch(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    indices: Sequence[int],
    decoding: DecodingConfig,
    complete: Complete | None,
    static: StaticDecoding | None,
) -> list[str]:
    padding = pad_id(tokenizer)
    ids, mask = pad_left(rows, padding, next(model.parameters()).device)
    longest = ids.shape[1]
    extra: dict[str, Any] = {}
    steps: AbstractContextManager[None] = nullcontext()
    if longest > 1 and (decoding.beams > 1 or static is not None):
        cache: Cache = _shared_prompt(model, ids, mask, decoding.beams)
        fixed = None if static is None else static.cache(cache, model.config, longest + decoding.max_new_tokens)
        if static is not None and fixed is not None:
            cache, steps = fixed, static.steps(model)
        extra["past_key_values"] = cache
    if decoding.beams == 1 and complete is not None:
        extra["stopping_criteria"] = StoppingCriteriaList([_Complete(tokenizer, longest, indices, complete)])
    if decoding.no_repeat_ngram_size:
        extra["logits_processor"] = LogitsProcessorList([NoRepeatInReply(decoding.no_repeat_ngram_size, longest)])
    # input_ids and mask only: position ids follow from the mask.
    with _without_own_settings(model), steps:
        sequences = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=_settings(decoding, tokenizer, padding), **extra
        )
    return tokenizer.batch_decode(
        [_until_end(row, tokenizer.eos_token_id) for row in sequences[:, longest:].tolist()],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Leave a checkpoint's generation_config.json out of decoding, which the protocol defines.

    transformers fills every field that is None from it: suppressed tokens, biases, stop strings, time limits.
    """
    inner = unwrapped(model)
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own


def _settings(decoding: DecodingConfig, tokenizer: Any, padding: int) -> GenerationConfig:
    of_beams = {"length_penalty": decoding.length_penalty, "early_stopping": decoding.early_stopping}
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        num_beams=decoding.beams,
        num_return_sequences=1,
        no_repeat_ngram_size=0,  # transformers would count the prompt's n-grams too: `NoRepeatInReply`
        repetition_penalty=1.0,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        use_cache=True,
        disable_compile=True,  # transformers would compile a model for a static cache
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # Fills rows that have ended. The end token, so that decoding cuts there even if padding is an ordinary token.
        pad_token_id=padding if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
        **(of_beams if decoding.beams > 1 else {}),  # transformers warns of them where there is one
    )


def _until_end(ids: list[int], end: int | None) -> list[int]:
    """Cut at the end token: what follows is padding, which need not be a special token."""
    return ids[: ids.index(end)] if end is not None and end in ids else ids


def _shared_prompt(model: Any, ids: torch.Tensor, mask: torch.Tensor, beams: int) -> DynamicCache:
    """Return the keys and values of all prompt tokens but the last, repeated for the beams."""
    cache = DynamicCache(config=model.config)
    model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions(mask)[:, :-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_repeat_interleave(beams)
    return cache


class NoRepeatInReply(LogitsProcessor):
    """Bans a repeated n-gram within the reply, as the LoRA release's beam search does.

    transformers' own processor looks at prompt and reply together, so a name of n tokens could not be copied from the
    prompt.
    """

    def __init__(self, size: int, prompt_length: int) -> None:
        self.size, self.prompt_length = size, prompt_length
        self._processor = NoRepeatNGramLogitsProcessor(size)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        reply = input_ids[:, self.prompt_length :]
        return scores if reply.shape[1] < self.size else self._processor(reply, scores)


class _Complete(StoppingCriteria):
    """Stops each row of a greedy batch one token after its reading is settled.

    The additional token tells "the correct answer is answer1" from the same words with a continuation, which is
    counted.
    """

    def __init__(self, tokenizer: Any, prompt_length: int, indices: Sequence[int], complete: Complete) -> None:
        self.tokenizer, self.prompt_length = tokenizer, prompt_length
        self.indices, self.complete = indices, complete
        self.settled = [False] * len(indices)
        self.done = [False] * len(indices)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        end = self.tokenizer.eos_token_id
        new = input_ids[:, self.prompt_length :].tolist()
        self.done = [done or settled for done, settled in zip(self.done, self.settled, strict=True)]
        for row, ids in enumerate(new):
            if self.done[row] or ids[-1] == end:
                continue
            text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            self.settled[row] = self.complete(self.indices[row], text)
        return torch.tensor(self.done, dtype=torch.bool, device=input_ids.device)
