"""The commonsense suite: eight multiple-choice tasks under the published protocol and a clean one.

    read(task, reply) -> str | None                    the published reading of a reply
    build(config) -> Commonsense                       a `dual_lora.tasks.base.Task`, of whose optional parts it has:
    .complete(reply, example) -> bool                  more text cannot change the reading (generation stops there)
    .ranking(example, scoring) -> (prompt, candidates) for scoring "likelihood" and "cloze"; candidate i is option i
    .choose(example, scoring, log_probabilities) -> Answer      the likeliest candidate's label

Readings are `Answer`s: the label, and also whether the reply is exactly the taught sentence, or which label cloze
scoring chooses after dividing by length. So `score` reports accuracy and accuracy_normalised from one list.

`examples("train")` is in the order of the files (tasks one after the other, or the published mixture's order): sample
from it with a seed, never from its start. `examples("validation")` is split off it as `datasets` does with
`train_test_split(test_size, shuffle=True, seed)`, which is the published split.

What is learned, `task.target`: `label`, the published sentence "the correct answer is answer1"; or `text`, the answer
in words. The scoring `generate` reads a reply accordingly, `likelihood` ranks the published sentences, `cloze` ranks
the answers' texts (raw, and divided by their length in characters, as lm-evaluation-harness's acc and acc_norm).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from dual_lora.config import ConfigError, DataConfig, ProtocolConfig, RunConfig, TaskConfig, legal_values
from dual_lora.tasks import unused
from dual_lora.tasks.base import Example, Head, Prompt, Reading, Score, Split, Task
from dual_lora.tasks.commonsense.data import ORIGIN, PUBLISHED, REVISION, LoadedSplit, load_split
from dual_lora.tasks.commonsense.items import SUBSETS, Answer, Item, parse, read, read_text, sentence
from dual_lora.tasks.commonsense.prompts import prompt
from dual_lora.tasks.commonsense.scoring import average, score_subset

__all__ = ["SUBSETS", "Answer", "Commonsense", "build", "read"]

SCORINGS = ("generate", "likelihood", "cloze")
_PUBLISHED_VALIDATION = 120  # items of the published validation split (docs/protocols.md)


def build(config: RunConfig) -> Commonsense:
    """Return the task that a run's settings describe. Raises `ConfigError` for an unknown subset or scoring."""
    return Commonsense(config.task, config.protocol, config.data)


class Commonsense(Task):
    """See the module. Nothing is read from disk before it is needed."""

    head = Head("causal_lm")
    settles_early = True
    unused = unused.UNUSED_BY_CHOICE

    def __init__(self, task: TaskConfig, protocol: ProtocolConfig, data: DataConfig) -> None:
        self.name = task.name
        self.scorings = task.scorings or protocol.scorings
        for kind, values, legal in (("subsets", task.subsets, SUBSETS), ("scorings", self.scorings, SCORINGS)):
            for value in values:
                if value not in legal:
                    raise ConfigError(f"task.{kind}={value!r} does not exist{legal_values(value, legal)}")
            if not values:
                raise ConfigError(f"task.{kind} is empty; name at least one of {', '.join(legal)}")
        self.metrics = ("accuracy", "accuracy_normalised") if self.scorings[0] == "cloze" else ("accuracy",)
        self.target, self.subsets, self.protocol, self.data = task.target, task.subsets, protocol, data
        prompt(protocol.prompt, "", training=True)  # a misspelt name is found now
        self._splits: dict[Split, LoadedSplit] = {}

    # -- data ----------------------------------------------------------------------------------------------------

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing or different in the data, for the record and the tables. Reads it."""
        return tuple(note for split in ("train", "test") for note in self._split(cast(Split, split)).notes)

    def examples(self, split: Split) -> list[Example]:
        """Return all items of a split, in the files' order. Raises `DataError`."""
        return list(self._split(split).examples)

    def fingerprint(self) -> dict[str, Any]:
        """Return source, sha256 of every file read (hub: the pinned revision) and counts per split."""
        if self.data.source == "hub":
            return {"source": "hub", "repository": ORIGIN, "revision": REVISION}
        splits = {split: self._split(split) for split in cast(tuple[Split, ...], ("train", "validation", "test"))}
        return {
            "source": self.data.source,
            "files": {name: digest for split in splits.values() for name, digest in sorted(split.files.items())},
            "counts": {name: len(split.examples) for name, split in splits.items()},
        }

    def published_train_examples(self) -> int:
        """Return the size of the published mixture without the validation examples, repeated examples counted."""
        return sum(PUBLISHED[subset][0] for subset in self.subsets) - self._wanted_validation()

    def _wanted_validation(self) -> int:
        if self.protocol.validation_part == "all":
            return self.protocol.validation_examples or _PUBLISHED_VALIDATION
        return (self.protocol.selection_examples or 0) + (self.protocol.report_examples or 0)

    def _split(self, split: Split) -> LoadedSplit:
        if split not in self._splits:
            if split == "test":
                self._splits["test"] = load_split(self.data, "test", self.subsets)
            else:
                self._splits["train"], self._splits["validation"] = self._training_splits()
        return self._splits[split]

    def _training_splits(self) -> tuple[LoadedSplit, LoadedSplit]:
        loaded = load_split(self.data, "train", self.subsets)
        examples, notes = loaded.examples, loaded.notes
        if self.protocol.drop_repeated_examples:
            first: dict[tuple[str, str], Example] = {}
            for example in examples:
                first.setdefault(_content(example), example)
            examples = list(first.values())
            if repeated := len(loaded.examples) - len(examples):
                notes = [*notes, f"{repeated} repeated training examples left out"]
        wanted = self._wanted_validation()
        size = min(wanted, max(1, len(examples) // 5))
        if size < wanted:
            notes = [*notes, f"validation: {size} items instead of {wanted}, a fifth of the {len(examples)} there are"]
        kept, held_out = _published_split(len(examples), size, self.protocol.validation_seed)
        return (
            LoadedSplit([examples[index] for index in kept], loaded.files, notes),
            LoadedSplit([examples[index] for index in held_out], {}, []),
        )

    # -- text ----------------------------------------------------------------------------------------------------

    def render(self, example: Example, *, training: bool) -> Prompt:
        """Return prompt and answer. `training` chooses the published template of training or of evaluation."""
        item = parse(example.fields["instruction"])
        right = example.references[0]
        answer = example.fields["output"] if self.target == "label" else item.options[right]
        return Prompt(prompt(self.protocol.prompt, self._instruction(example, item), training=training), answer)

    def _instruction(self, example: Example, item: Item) -> str:
        if self.target == "label":
            return str(example.fields["instruction"])
        return item.question

    def read(self, reply: str, example: Example) -> Reading:
        """Return the answer's label as an `Answer`, or None if the reply has none."""
        item = parse(example.fields["instruction"])
        label = read_text(reply, item) if self.target == "text" else read(example.subset, reply)
        return None if label is None else Answer(label, exact=reply.strip() == self._taught(item, label))

    def _taught(self, item: Item, label: str) -> str | None:
        """Return what training teaches to write for a label; None for a label that the item does not have."""
        if label not in item.options:
            return None
        return item.options[label] if self.target == "text" else sentence(label)

    def complete(self, reply: str, example: Example) -> bool:
        """Whether the reading can no longer change: the leftmost published match is found, or the line has ended."""
        if self.target == "text":
            return "\n" in reply.lstrip("\n") and bool(reply.strip())
        return read(example.subset, reply) is not None

    # -- scores --------------------------------------------------------------------------------------------------

    def ranking(self, example: Example, scoring: str) -> tuple[str, tuple[str, ...]]:
        """Return the prompt and the candidate answers, in the options' order."""
        item = parse(example.fields["instruction"])
        text = prompt(self.protocol.prompt, self._instruction(example, item), training=False)
        if scoring == "likelihood":
            return text, tuple(sentence(label) for label in item.options)
        if scoring == "cloze":
            return text, tuple(item.options.values())
        raise ConfigError(f"scoring {scoring!r} ranks nothing; legal: likelihood, cloze")

    def choose(self, example: Example, scoring: str, log_probabilities: Sequence[float]) -> Answer | None:
        """Return the label of the likeliest candidate; for cloze also the one after dividing by characters.

        None, unreadable, if a number is NaN or none is finite: such a model prefers no candidate.
        """
        if any(map(math.isnan, log_probabilities)) or not any(map(math.isfinite, log_probabilities)):
            return None
        labels = list(parse(example.fields["instruction"]).options)
        best = labels[_first_best(log_probabilities)]
        if scoring != "cloze":
            return Answer(best, exact=True)
        _, candidates = self.ranking(example, scoring)
        per_character = [p / max(1, len(text)) for p, text in zip(log_probabilities, candidates, strict=True)]
        return Answer(best, exact=True, normalised=labels[_first_best(per_character)])

    def score(self, readings: Sequence[Reading], examples: Sequence[Example], scoring: str) -> list[Score]:
        """Return accuracy per task, in the order of `subsets`, then their plain mean as "average"."""
        scores = []
        for subset in self.subsets:
            rows = [index for index, example in enumerate(examples) if example.subset == subset]
            if rows:
                chosen = [examples[row] for row in rows]
                scores.append(score_subset(subset, chosen, [readings[row] for row in rows], scoring))
        return [*scores, average(scores, scoring)]


def _content(example: Example) -> tuple[str, str]:
    return example.fields["instruction"], example.references[0]


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])


def _published_split(count: int, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices that stay for training and those split off: the published code's own `datasets` call."""
    from datasets import Dataset

    parts = Dataset.from_dict({"index": list(range(count))}).train_test_split(test_size=size, shuffle=True, seed=seed)
    train, test = (parts[name].with_format("numpy")[:]["index"].tolist() for name in ("train", "test"))
    return train, test
