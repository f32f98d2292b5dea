"""From a prompt and its answer to token ids and labels for a causal model.

    encode(prompt, tokenizer, protocol, max_length_tokens) -> {"input_ids": [...], "labels": [...]} | None
    encode_all(prompts, tokenizer, protocol, max_length_tokens, progress=None) -> Encoded(rows, indices, counts)
    prompt_ids(text, tokenizer) -> [...]             # what the model reads at evaluation; the same ids as in training
    max_length(protocol, max_length_tokens) -> int   # the protocol's cut-off if it has one, else the recipe's

The cut-off: `protocol=paper` truncates the whole text as the published code does, so an answer can lose its end; every
other protocol leaves the example out (`encode` returns None), so an answer is never cut. Both are counted:
`counts = {"examples", "over_length", "answer_cut", "left_out"}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dual_lora.config import DataError, ProtocolConfig
from dual_lora.tasks.base import Progress, Prompt

IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Encoded:
    """Training rows of a split."""

    rows: list[dict[str, list[int]]]  # {"input_ids", "labels"}, both of the same length
    indices: list[int]  # of the prompt that each row was made from
    counts: dict[str, int]


def max_length(protocol: ProtocolConfig, max_length_tokens: int) -> int:
    """Return the cut-off in tokens, the end token included."""
    return protocol.max_length_tokens or max_length_tokens


def prompt_ids(text: str, tokenizer: Any) -> list[int]:
    """Return the ids of text that goes on: with the tokenizer's start token if it has one, without an end token."""
    ids = list(tokenizer(text)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return ids


def encode(
    prompt: Prompt, tokenizer: Any, protocol: ProtocolConfig, max_length_tokens: int
) -> dict[str, list[int]] | None:
    """Return ids and labels of one training example, or None if the protocol leaves it out for its length.

    The text is tokenized as a whole. With `loss_on=answer` the prompt's own ids must be its beginning: a token that
    joins the end of the prompt to the start of the answer would be seen in training and never at evaluation, where
    the model is given the prompt alone. Raises `DataError` if they are not.
    """
    row, _ = _encode(prompt, tokenizer, protocol, max_length_tokens)
    return row


def _encode(
    prompt: Prompt, tokenizer: Any, protocol: ProtocolConfig, max_length_tokens: int
) -> tuple[dict[str, list[int]] | None, bool]:
    """Return the row (None: left out) and whether the text was over the cut-off."""
    limit = max_length(protocol, max_length_tokens)
    ids = prompt_ids(prompt.text, tokenizer)
    start = 0
    if protocol.loss_on == "answer":
        start = _answer_start(prompt, ids, tokenizer)
    ends_itself = bool(ids) and ids[-1] == tokenizer.eos_token_id
    end = [tokenizer.eos_token_id] if protocol.append_end and not ends_itself else []
    if protocol.name == "paper":
        # As published: the end token is appended only where it fits, and its absence is not an overflow.
        over = len(ids) > limit
        ids = ids[:limit] + (end if len(ids) < limit else [])
    else:
        over = len(ids) + len(end) > limit
        if over:
            return None, True
        ids = ids + end
    labels = [IGNORED] * min(start, len(ids)) + ids[start:]
    return {"input_ids": ids, "labels": labels}, over


def _answer_start(prompt: Prompt, ids: Sequence[int], tokenizer: Any) -> int:
    head = prompt_ids(prompt.prompt, tokenizer)
    if list(ids[: len(head)]) != head:
        at = next((i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), min(len(head), len(ids)))
        joined = tokenizer.decode(ids[at : at + 3])
        raise DataError(
            f"prompt and answer share a token: the prompt ends in {prompt.prompt[-20:]!r}, the answer starts with "
            f"{prompt.answer[:20]!r}, and together they read {joined!r} at token {at}. End the prompt where this "
            "tokenizer starts a new token (after a newline, or before a blank), or use protocol.loss_on=all"
        )
    return len(head)


def encode_all(
    prompts: Iterable[Prompt],
    tokenizer: Any,
    protocol: ProtocolConfig,
    max_length_tokens: int,
    progress: Progress | None = None,
) -> Encoded:
    """Encode a split in its order; rows that are left out keep their place in `indices`.

    Raises `DataError` if nothing is left.
    """
    prompts = list(prompts)
    rows: list[dict[str, list[int]]] = []
    indices: list[int] = []
    counts = {"examples": len(prompts), "over_length": 0, "answer_cut": 0, "left_out": 0}
    for index, prompt in enumerate(prompts):
        row, over = _encode(prompt, tokenizer, protocol, max_length_tokens)
        counts["over_length"] += over
        if row is None:
            counts["left_out"] += 1
        else:
            counts["answer_cut"] += over  # the answer stands last, so what is cut is the answer
            rows.append(row)
            indices.append(index)
        if progress is not None and (index % 1000 == 999 or index + 1 == len(prompts)):
            progress(index + 1, len(prompts))
    if not rows:
        raise DataError(
            f"no training example is left: all {len(prompts)} are longer than "
            f"{max_length(protocol, max_length_tokens)} tokens; raise recipe.max_length_tokens "
            "(or protocol.max_length_tokens)"
        )
    return Encoded(rows, indices, counts)
