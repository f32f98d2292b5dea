"""How long the texts of a run are, in tokens, before anything is read: for plans.

    lengths = planned_lengths(config)          # from what was measured of each task and tokenizer, or by characters
    lengths.longest(16_000)                    # among so many examples
    lengths.padded(batch=16, grouped=True)     # of a batch on average

What was measured is in `lengths.json`, which `tests/measured_lengths.py` writes.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dual_lora.config import RunConfig
from dual_lora.tasks.base import ClassificationTask, Task
from dual_lora.tasks.encoding import max_length
from dual_lora.tasks.padding import rounded_length
from dual_lora.tasks.splits import select

TABLE = Path(__file__).with_suffix(".json")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 0.9999, 1.0)
_TOKENIZED = 300
_STEPS = 200  # of the integrals over quantiles
_GROUPED = 50  # batches in a window in which examples are sorted by length (transformers)
# The measured tokenizer that is most like one that was not: Qwen2's and LLaMA 3's take longer words than SmolLM2's.
_TOKENIZERS = {"llama3": "smollm2", "qwen2": "smollm2", "llama": "llama2", "deberta": "roberta"}
# Tasks that were not measured, and a similar one.
_SIMILAR = {
    "dart": "webnlg",
    "glue/mnli": "glue/rte",
    "glue/qnli": "glue/rte",
    "glue/qqp": "glue/mrpc",
    "glue/wnli": "glue/mrpc",
}
_CHARACTERS = 3.6  # of English a token: 3.3 (LLaMA 2) to 4.1 (SmolLM2) in the measured tasks


@dataclass(frozen=True)
class Longest:
    """The longest texts of a run: of training, with tokens that have a loss, of validation, of a prompt."""

    train: int
    second: int  # of training, after the longest
    rows: int  # of training, but for texts that are left out
    learned: float  # of those as long as a batch with the longest
    validation: int
    prompt: int


@dataclass(frozen=True)
class Lengths:
    """Token counts of a task's texts; `quantiles` of training texts at `QUANTILES`, cut at the run's limit."""

    quantiles: Sequence[float]
    learned: tuple[float, float]  # tokens with a loss: on average, and in long texts
    prompt: tuple[float, int]  # of a test item: on average, and the longest
    validation: int  # items of the run's part of the split
    test: int  # items that are scored
    candidates: float  # that are ranked for a test item
    known: str = "measured"  # or by "characters", or the "limit" alone
    exact: Longest | None = None  # if data and tokenizer are here

    def longest(self, examples: int, place: int = 1) -> int:
        """Return the tokens of the longest of so many examples (2: of the second), where it is not known exactly."""
        every = place == 1 and examples > 20_000
        return math.ceil(at_share(self.quantiles, 1.0 if every else 1 - min(place - 0.5, examples) / max(examples, 1)))

    def mean(self) -> float:
        return sum(at_share(self.quantiles, (step + 0.5) / _STEPS) for step in range(_STEPS)) / _STEPS

    def padded(self, batch: int, *, grouped: bool) -> float:
        """Return the padded length of a batch, on average."""
        shares = [(step + 0.5) / _STEPS for step in range(_STEPS)]
        if grouped:  # each batch has a fiftieth of the window's lengths
            shares = [math.ceil(share * _GROUPED) / _GROUPED for share in shares]
            shares = [min(share, 1 - 0.5 / (_GROUPED * batch)) for share in shares]
        else:  # the longest of a batch
            shares = [share ** (1 / batch) for share in shares]
        return sum(rounded_length(math.ceil(at_share(self.quantiles, share))) for share in shares) / _STEPS


def planned_lengths(config: RunConfig, task: Task) -> Lengths:
    """Return what is known of a run's texts. Local data that was not measured is read, and its tokens are guessed."""
    found = _of_task(config, task)
    validation, test, profile = _part(found.validation, config), found.test, config.profile
    if profile.validation_examples is not None:
        validation = min(validation, profile.validation_examples)
    if profile.test_items is not None:  # of each subset
        test = min(test, profile.test_items * len(config.task.subsets))
    return replace(found, validation=validation, test=test)


def _part(validation: int, config: RunConfig) -> int:
    """Return how many validation items the run's part has, of a split with so many where there are no parts."""
    protocol = config.protocol
    if protocol.validation_part == "all":
        return validation
    if protocol.validation_part == "select":
        return protocol.selection_examples or validation
    return protocol.report_examples or validation - (protocol.selection_examples or 0)


def _of_task(config: RunConfig, task: Task) -> Lengths:
    found = None if config.data.source == "sample" else _measured(config)
    limit = max_length(config.protocol, config.recipe.max_length_tokens)
    if found is None and config.data.source == "hub":
        return Lengths([limit] * len(QUANTILES), (limit, limit), (limit, limit), 1000, 1000, 4.0, "limit")
    if found is None:
        return _by_characters(config, task)
    cut = limit if isinstance(task, ClassificationTask) else found["prompt"][1]  # a prompt that is answered is whole
    return Lengths(
        [min(value, limit) for value in found["tokens"]],
        (found["learned"][0], found["learned"][1]),
        (min(found["prompt"][0], cut), min(found["prompt"][1], cut)),
        found["validation"],
        found["test"],
        found["candidates"],
    )


def _measured(config: RunConfig) -> dict[str, Any] | None:
    task = _SIMILAR.get(config.task.name, config.task.name)
    target = f" {config.task.target}" if task == "commonsense" else ""
    model = config.model
    names = [model.name, model.name.partition("_")[0], model.family]
    for name in [*names, *(_TOKENIZERS[name] for name in names if name in _TOKENIZERS)]:
        if (found := _table().get(f"{task}{target} {name}")) is not None:
            return found
    return None


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def _by_characters(config: RunConfig, task: Task) -> Lengths:
    train, test = task.examples("train"), task.examples("test")
    if isinstance(task, ClassificationTask):
        texts, answers = [sum(map(len, task.texts(example))) for example in train], [0 for _ in train]
        prompts = [sum(map(len, task.texts(example))) for example in test]
    else:
        rendered = [task.render(example, training=True) for example in train]
        texts, answers = [len(one.text) for one in rendered], [len(one.answer) for one in rendered]
        prompts = [len(task.render(example, training=False).prompt) for example in test]
    limit = max_length(config.protocol, config.recipe.max_length_tokens)
    ordered = sorted(min(count / _CHARACTERS, limit) for count in texts) or [float(limit)]
    learned = sum(answers) / max(len(answers), 1) / _CHARACTERS
    validation = 0 if isinstance(task, ClassificationTask) else len(task.examples("validation"))
    return Lengths(
        [at(ordered, share) for share in QUANTILES],
        (learned, max(answers, default=0) / _CHARACTERS),
        (sum(prompts) / max(len(prompts), 1) / _CHARACTERS, math.ceil(max(prompts, default=0) / _CHARACTERS)),
        validation,
        len(test),
        4.0,
        "characters",
    )


def longest(config: RunConfig, task: Task, tokenizer: Any, batch: int) -> Longest:
    """Return the longest texts of a run's items. Only the `_TOKENIZED` with the most characters are tokenized.

    tokenizer: a `tokenizers.Tokenizer`, light to import. batch: rows that are padded to the longest.
    """
    items, limit = select(task, config), max_length(config.protocol, config.recipe.max_length_tokens)
    more = 1 if config.protocol.append_end and task.head.kind == "causal_lm" else 0

    if isinstance(task, ClassificationTask):
        train = [task.texts(one) for one in items.train]
        scored = [task.texts(one) for one in [*items.test, *items.held_out]]
        (first, second), (prompt, _) = (
            _two([one for one, _ in _encoded(tokenizer, _top(part), 0)], limit) for part in (train, scored)
        )
        return Longest(first, second, len(train), 0.0, 0, prompt)
    rendered = [task.render(example, training=True) for example in items.train]
    answers = {one.text: one.answer for one in rendered}
    ordered = sorted(_encoded(tokenizer, _top([(one.text,) for one in rendered]), more), reverse=True)
    every = len(ordered)
    if config.protocol.name != "paper":  # its texts are cut, those of others left out
        ordered = [one for one in ordered if one[0] <= limit]
    # A batch has the longest texts of one window, and the run has so many windows.
    alike = ordered[: batch * math.ceil(len(rendered) / (batch * _GROUPED))]
    learned = [len(tokenizer.encode(answers[text], add_special_tokens=False).ids) + more for _, text in alike]
    if config.protocol.loss_on == "all":
        learned = [length for length, _ in alike]
    validation = _encoded(tokenizer, _top([(task.render(one, training=True).text,) for one in items.validation]), more)
    prompts = _encoded(tokenizer, _top([(task.render(one, training=False).prompt,) for one in items.test]), 0)
    return Longest(
        *_two([length for length, _ in ordered], limit),
        len(rendered) - (every - len(ordered)),
        sum(learned) / max(len(learned), 1),
        max((min(length, limit) for length, _ in validation), default=0),
        max((length for length, _ in prompts), default=0),
    )


def _two(lengths: Sequence[int], limit: int) -> tuple[int, int]:
    """Return the two largest, each at most the limit."""
    first, second = sorted([0, 0, *lengths], reverse=True)[:2]
    return min(first, limit), min(second, limit)


def _encoded(tokenizer: Any, texts: Sequence[tuple[str, ...]], more: int) -> list[tuple[int, str]]:
    """Return tokens and first text of each."""
    return [(len(tokenizer.encode(*text).ids) + more, text[0]) for text in texts]


def _top(texts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return sorted(texts, key=lambda text: -sum(map(len, text)))[:_TOKENIZED]


def at(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted numbers, interpolated."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def at_share(quantiles: Sequence[float], share: float) -> float:
    """Return a quantile between those at `QUANTILES`, interpolated."""
    for place in range(1, len(QUANTILES)):
        if share <= QUANTILES[place]:
            below, above = QUANTILES[place - 1], QUANTILES[place]
            part = (share - below) / (above - below)
            return quantiles[place - 1] + part * (quantiles[place] - quantiles[place - 1])
    return quantiles[-1]
