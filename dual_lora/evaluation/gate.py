"""A check of prompts, padding, mask and weights that takes a minute, before hours of evaluation.

    check_base(model, tokenizer, task, examples, protocol, pretrained=True)     # before training: prompts and weights
    check(model, tokenizer, task, examples, protocol, pretrained=True, dtype=torch.float32) -> dict[str, float]
        raises `GateError` naming the fault; returns what was measured, for the log

Everything is judged on a few items by what the model does, not by what the code is meant to do:

- prompt: the evaluation prompt is the beginning of the training text, token for token (published protocol: the same
  words, since its two templates differ in blanks by design).
- padding and mask: items are generated in one batch of unequal lengths; every token must also be the model's (nearly)
  best choice when that item is computed alone, without padding. A padding side or mask that is wrong fails this.
- weights: a pretrained model predicts the prompts' English far better than a model of random weights, whose loss is the
  logarithm of the vocabulary's size. It is judged with the adapter disabled: training on answers alone may unlearn the
  prompts (SmolLM2-135M after 150 steps at 2e-3: 7.6 nats against 3.2 before).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dual_lora.config import DecodingConfig, ProtocolConfig
from dual_lora.evaluation import generation
from dual_lora.evaluation.passes import evaluating
from dual_lora.models.sources import RANDOM_MARK
from dual_lora.tasks.base import Example, Task
from dual_lora.tasks.encoding import prompt_ids

ITEMS = 6
NEW_TOKENS = 4
# How much less likely (nats) a batched choice may be than the best one computed alone: the rounding of a forward pass.
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.5, torch.float16: 0.5}
# A pretrained model's loss on its prompts, as a share of log(vocabulary). SmolLM2-135M: 0.30; random weights: 1.0.
PRETRAINED_SHARE = 0.7


class GateError(RuntimeError):
    """An evaluation that would measure a fault instead of the model."""


@torch.no_grad()
def check_base(
    model: Any, tokenizer: Any, task: Task, examples: Sequence[Example], protocol: ProtocolConfig, *, pretrained: bool
) -> None:
    """Raise `GateError` if training would start from weights that are not loaded, or on another prompt than is asked.

    Args: as of `check`. A model that is not `pretrained` computes nothing.
    """
    chosen = _spread(examples, tokenizer, task, _positions(model))
    _check_prompts(tokenizer, task, chosen, protocol)
    if pretrained:
        _check_weights(_base_loss(model, tokenizer, task, chosen), model)


@torch.no_grad()
def check(
    model: Any,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    protocol: ProtocolConfig,
    *,
    pretrained: bool = True,
    dtype: torch.dtype = torch.float32,
    generate: Callable[..., list[str]] = generation.generate,
) -> dict[str, float]:
    """Raise `GateError` if a sample of the items shows that the evaluation is broken; takes a few forward passes.

    Args:
        model: the base, or a PeftModel around it, not merged.
        pretrained: whether the base weights are a language model's. False for the random test models, and where the
            weights themselves were trained (full fine-tuning), since these may have unlearned the prompts.
        dtype: what the model computes in, whatever the dtype of weights and outputs: it decides how much is rounding.
        generate: the function that the evaluation will use.
    """
    chosen = _spread(examples, tokenizer, task, _positions(model))
    _check_prompts(tokenizer, task, chosen, protocol)
    loss = _base_loss(model, tokenizer, task, chosen)
    if pretrained:
        _check_weights(loss, model)
    prompts = [task.render(one, training=False).prompt for one in chosen]
    with evaluating(model):
        gap = _check_padding(model, tokenizer, prompts, generate, TOLERANCE[dtype])
    return {"base_prompt_loss": loss, "largest_gap": gap}


def _positions(model: Any) -> int | None:
    """Return how many tokens a prompt of the gate may have; None: any number."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None else int(limit) - NEW_TOKENS


def _spread(examples: Sequence[Example], tokenizer: Any, task: Task, longest: int | None) -> list[Example]:
    """Return items from all over the data, including the shortest and the longest of a sample that fits the model."""

    def prompt(one: Example) -> str:
        return task.render(one, training=False).prompt

    sample = examples[:: max(1, len(examples) // 60)]
    fitting = [one for one in sample if longest is None or len(prompt_ids(prompt(one), tokenizer)) <= longest]
    by_length = sorted(fitting or sample, key=lambda one: len(prompt(one)))
    places = {round(place * (len(by_length) - 1) / (ITEMS - 1)) for place in range(ITEMS)}
    return [by_length[place] for place in sorted(places)]


def _check_prompts(tokenizer: Any, task: Task, examples: Sequence[Example], protocol: ProtocolConfig) -> None:
    for example in examples:
        trained = task.render(example, training=True)
        asked = task.render(example, training=False)
        if protocol.loss_on == "answer":
            opening, whole = prompt_ids(asked.prompt, tokenizer), prompt_ids(trained.text, tokenizer)
            same = whole[: len(opening)] == opening
        else:
            same = trained.prompt.split() == asked.prompt.split()
        if not same:
            raise GateError(
                f"{example.identifier}: the evaluation prompt is not what was trained on.\n"
                f"  trained:   ...{trained.prompt[-60:]!r}\n  evaluated: ...{asked.prompt[-60:]!r}\n"
                "Use the protocol and task.target that the adapter was trained with, or fix the prompt"
            )


def _device(model: Any) -> torch.device:
    return torch.device(next(model.parameters()).device)


def _base_loss(model: Any, tokenizer: Any, task: Task, examples: Sequence[Example]) -> float:
    """Return `_loss` of the base in evaluation mode, its adapter disabled."""
    with evaluating(model), model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext():
        return _loss(model, tokenizer, task, examples)


def _loss(model: Any, tokenizer: Any, task: Task, examples: Sequence[Example]) -> float:
    """Return the mean loss per token (nats) on the prompts, each computed alone."""
    total, count = 0.0, 0
    for example in examples:
        ids = torch.tensor([prompt_ids(task.render(example, training=False).prompt, tokenizer)], device=_device(model))
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count


def _check_weights(loss: float, model: Any) -> None:
    limit = PRETRAINED_SHARE * math.log(model.config.vocab_size)
    if not loss < limit:  # also NaN
        raise GateError(
            f"the model's loss on plain prompts is {loss:.2f} nats a token; random weights give "
            f"{math.log(model.config.vocab_size):.2f}, a pretrained model stays below {limit:.2f}. The base weights "
            "are not loaded, or only some of them: fetch the checkpoint again. Weights that are random on purpose have "
            f"a file {RANDOM_MARK} in their folder (the command random-checkpoint writes it)"
        )


def _check_padding(
    model: Any, tokenizer: Any, prompts: Sequence[str], generate: Callable[..., list[str]], tolerance: float
) -> float:
    """Return the largest gap between a batched choice and the best one alone. Raises `GateError` if it is too large."""
    chosen: dict[int, list[int]] = {}
    decoding = DecodingConfig(beams=1, max_new_tokens=NEW_TOKENS)
    with _recorded_tokens(model, chosen):
        generate(model, tokenizer, prompts, decoding, batch_size=len(prompts))
    rows = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    largest = 0.0
    for row, index in enumerate(order):
        new = chosen[row]
        if tokenizer.eos_token_id in new:
            new = new[: new.index(tokenizer.eos_token_id) + 1]
        alone = torch.tensor([rows[index] + new], device=_device(model))
        logits = model(input_ids=alone).logits[0, len(rows[index]) - 1 : -1].float()
        picked = logits.gather(-1, torch.tensor(new, device=logits.device).unsqueeze(-1)).squeeze(-1)
        gap = float((logits.max(-1).values - picked).max())
        largest = max(largest, gap)
        if not gap <= tolerance:
            raise GateError(
                f"an item's reply in a batch differs from that alone (its choice is {gap:.2f} nats below the best; "
                f"at most {tolerance} is rounding): padding is on the wrong side, or the attention mask is missing"
            )
    return largest


class _recorded_tokens:
    """Keep the token ids that `model.generate` returns, per row of its batch: a reply's text may not give them back."""

    def __init__(self, model: Any, rows: dict[int, list[int]]) -> None:
        self.model, self.rows = model, rows

    def __enter__(self) -> None:
        original = self.model.generate

        def recording(**kwargs: Any) -> Any:
            result = original(**kwargs)
            start = kwargs["input_ids"].shape[1]
            for row, ids in enumerate(result[:, start:].tolist()):
                self.rows[row] = ids
            return result

        self.model.generate = recording

    def __exit__(self, *_: object) -> None:
        del self.model.generate
