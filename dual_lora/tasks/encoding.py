"""From a prompt and its answer to token ids and labels for a causal model.

    encode(prompt, tokenizer, protocol, max_length_tokens) -> {"input_ids": [...], "labels": [...]} | None, over
    encode_all(prompts, tokenizer, protocol, max_length_tokens) -> rows, counts
    prompt_ids(text, tokenizer) -> [...]             # what the model reads at evaluation; the same ids as in training
    all_prompt_ids(texts, tokenizer) -> [[...], ...] # the same of many texts, on all cores if the tokenizer may
    max_length(protocol, max_length_tokens) -> int   # the protocol's cut-off if it has one, else the recipe's

The cut-off: `protocol=paper` truncates the whole text as the published code does, so an answer can lose its end; every
other protocol leaves the example out (its row is None), so an answer is never cut. A row in which nothing is left to
predict is left out everywhere: it would be a batch without a loss, 0 / 0, if it came alone. All are counted:
`counts = {"examples", "over_length", "answer_cut", "left_out"}`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from dual_lora.config import DataError, ProtocolConfig
from dual_lora.config.bounds import MOST
from dual_lora.tasks import token_cache
from dual_lora.tasks.base import Prompt

_AT_ONCE = 1000  # texts
IGNORED = -100  # the label that torch's cross entropy leaves out


def max_length(protocol: ProtocolConfig, max_length_tokens: int) -> int:
    """Return the cut-off in tokens, the end token included."""
    return protocol.max_length_tokens or max_length_tokens


def prompt_ids(text: str, tokenizer: Any) -> list[int]:
    """Return the ids of text that goes on: with the tokenizer's start token if it has one, without an end token."""
    return all_prompt_ids([text], tokenizer)[0]


def all_prompt_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return `prompt_ids` of each text; of many, as `token_cache` knows them. Equal texts share a list."""
    return token_cache.ids_of(texts, tokenizer, lambda different: _encode(different, tokenizer))


def _encode(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    found: list[list[int]] = []
    for begin in range(0, len(texts), _AT_ONCE):
        part = list(texts[begin : begin + _AT_ONCE])
        for text, ids in zip(part, tokenizer(part, return_attention_mask=False)["input_ids"], strict=True):
            ends = ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token))
            found.append(list(ids[:-1] if ends else ids))
    return found


def encode(
    prompt: Prompt, tokenizer: Any, protocol: ProtocolConfig, max_length_tokens: int
) -> tuple[dict[str, list[int]] | None, bool]:
    """`encode_all` of one example: its row, or None if it is left out, and whether the text was over the cut-off."""
    [found] = _encoded([prompt], tokenizer, protocol, max_length_tokens)
    return found


def _encoded(
    prompts: Sequence[Prompt], tokenizer: Any, protocol: ProtocolConfig, max_length_tokens: int
) -> Iterator[tuple[dict[str, list[int]] | None, bool]]:
    heads: Sequence[list[int] | None] = [None] * len(prompts)
    if protocol.loss_on == "answer":
        heads = all_prompt_ids([prompt.prompt for prompt in prompts], tokenizer)
    wholes = all_prompt_ids([prompt.text for prompt in prompts], tokenizer)
    limit, end = max_length(protocol, max_length_tokens), tokenizer.eos_token_id
    for prompt, head, ids in zip(prompts, heads, wholes, strict=True):
        start = 0 if head is None else _answer_start(prompt, head, ids, tokenizer)
        yield _row(ids, start, end, protocol, limit)


def _row(
    ids: list[int], start: int, end_token: int, protocol: ProtocolConfig, limit: int
) -> tuple[dict[str, list[int]] | None, bool]:
    """Return ids and labels of one training example, both of one length, and whether the text was over the cut-off.

    The row is None if the example is left out: for its length, or since no label is left. The text is tokenized as a
    whole. With `loss_on=answer` the prompt's own ids must be its beginning: a token that joins the end of the prompt to
    the start of the answer would be seen in training and never at evaluation, where the model is given the prompt
    alone. Raises `DataError` if they are not.
    """
    ends_itself = bool(ids) and ids[-1] == end_token
    end = [end_token] if protocol.append_end and not ends_itself else []
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
    learned = len(ids) > max(start, 1)  # nothing comes before the first token to predict it from
    return ({"input_ids": ids, "labels": labels} if learned else None), over


def _answer_start(prompt: Prompt, head: Sequence[int], ids: Sequence[int], tokenizer: Any) -> int:
    if list(ids[: len(head)]) != list(head):
        at = next((i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), min(len(head), len(ids)))
        joined = tokenizer.decode(ids[at : at + 3])
        raise DataError(
            f"prompt and answer share a token: the prompt ends in {prompt.prompt[-20:]!r}, the answer starts with "
            f"{prompt.answer[:20]!r}, and together they read {joined!r} at token {at}. End the prompt where this "
            "tokenizer starts a new token (after a newline, or before a blank), or use protocol.loss_on=all"
        )
    return len(head)


def encode_all(
    prompts: Sequence[Prompt], tokenizer: Any, protocol: ProtocolConfig, max_length_tokens: int
) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """Encode a split in its order; return the rows that are not left out, and the counts.

    Raises `DataError` if nothing is left, with the cut-off that would do.
    """
    rows: list[dict[str, list[int]]] = []
    counts = {"examples": len(prompts), "over_length": 0, "answer_cut": 0, "left_out": 0}
    for row, over in _encoded(prompts, tokenizer, protocol, max_length_tokens):
        counts["over_length"] += over
        if row is None:
            counts["left_out"] += 1
        else:
            counts["answer_cut"] += over  # the answer stands last, so what is cut is the answer
            rows.append(row)
    if not rows:
        needed = _needed(prompts, tokenizer, protocol)
        enough = f"; one example needs {min(needed)}, all of them {max(needed)}" if needed else ""
        raise DataError(
            f"no example is left to learn from: of all {len(prompts)} the cut-off of "
            f"{max_length(protocol, max_length_tokens)} tokens leaves no part of an answer{enough}; raise "
            "recipe.max_length_tokens (or protocol.max_length_tokens)"
        )
    return rows, counts


def _needed(prompts: Sequence[Prompt], tokenizer: Any, protocol: ProtocolConfig) -> list[int]:
    """Return the lowest cut-off of each example at which it is not left out."""
    unlimited = replace(protocol, max_length_tokens=MOST)
    whole = [row["labels"] for row, _ in _encoded(prompts, tokenizer, unlimited, 1) if row]
    if protocol.name == "paper":  # the first token that is predicted
        return [max(labels.count(IGNORED) + 1, 2) for labels in whole]
    return [len(labels) for labels in whole]


def rendered_sha256(rows: Sequence[dict[str, Any]]) -> str:
    """Return the hash of what the model is trained on, token by token: the same on every resume of a run."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(json.dumps([row["input_ids"], row["labels"]]).encode())
    return hasher.hexdigest()
