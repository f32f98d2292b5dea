"""What E2E, WebNLG and DART share: linearised input, one or more reference texts, grouped references at test.

A task file supplies `read(split) -> Entries` (pairs of input and references in the data's order); this module makes
them a `Task`. Input and reference are joined as in the LoRA release: for GPT-2 its end-of-text token, which that code
puts between the two; for other models, whose release form does not exist, the " ||" of its text files. Either way the
reference follows after a blank, where every tokenizer used here starts a new token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dual_lora.config import ConfigError, DataError, RunConfig, legal_values
from dual_lora.metrics import java
from dual_lora.tasks import unused
from dual_lora.tasks.base import Example, Head, Prompt, Reading, Score, Split, Task

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SEPARATORS = {"gpt2": "<|endoftext|>"}
_OTHER_SEPARATOR = " ||"

Scorer = Callable[..., dict[str, float]]  # scores one subset: (predictions, references, metrics=...) -> {metric: value}
PerItem = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, Sequence[Any]]]  # -> {metric: a row per item}


@dataclass(frozen=True)
class Entry:
    """One entry of a file: an input with its references."""

    input: str  # linearised
    references: tuple[str, ...]
    subset: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entries:
    """A split as read: items, and what identifies its content (sha256 of a file, or revision and rows)."""

    items: list[Entry]
    identity: Mapping[str, Any]
    note: str | None = None


@dataclass(frozen=True)
class Size:
    """How large a split is."""

    texts: int
    inputs: int | None  # distinct ones; None: not known


@dataclass(frozen=True)
class Origin:
    """What identifies the data besides its content."""

    form: str | None  # of the references
    hub: Mapping[str, str]  # what pins the hub's copy
    from_hub: Sequence[Split] = ()  # splits that the local data lacks
    subsets: Sequence[str] = ()  # of the items; none: one, named after the task


class DataToText(Task):
    """The `Task` of a data-to-text set; see `dual_lora.tasks.base.Task`."""

    head = Head("causal_lm")
    free_text = True

    def __init__(
        self,
        config: RunConfig,
        *,
        read: Callable[[Split], Entries],
        scorer: Scorer,
        metrics: Sequence[str],
        published: Mapping[Split, Size],
        origin: Origin,
        notes: Sequence[str] = (),
        per_item: PerItem | None = None,
    ) -> None:
        self.name = config.task.name
        self.unused = {**unused.UNUSED_BY_TEXT, "task.subsets": (tuple(origin.subsets or [self.name]),)}
        self.scorings = config.task.scorings or ("generate",)
        if set(self.scorings) != {"generate"}:
            raise ConfigError(f"task.scorings={list(self.scorings)}: {self.name} supports only [generate]")
        self.metrics = chosen_metrics(config, metrics)
        self._separator = _SEPARATORS.get(config.model.family, _OTHER_SEPARATOR)
        self._source, self._origin = config.data.source, origin
        self._read, self._scorer, self._published, self._per_item = read, scorer, published, per_item
        self._notes = list(notes)
        left_out = [metric for metric in metrics if metric not in self.metrics]
        if left_out:
            self._notes.append(f"left out by task.metrics: {', '.join(left_out)}")
        self._loaded: dict[Split, Entries] = {}
        self._examples: dict[Split, list[Example]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing or different in this data; complete once every split has been read."""
        notes = [*self._notes]
        for split, loaded in self._loaded.items():
            if loaded.note:
                notes.append(loaded.note)
            notes.extend(self._short(split, loaded))
        return tuple(dict.fromkeys(notes))

    def _short(self, split: Split, loaded: Entries) -> list[str]:
        published = self._published.get(split)
        if published is None or self._source == "sample":
            return []
        found = _size(loaded.items)
        if found.texts == published.texts and published.inputs in (found.inputs, None):
            return []
        return [
            f"{split}: {found.texts} texts of {found.inputs} inputs; published are {published.texts} texts"
            + (f" of {published.inputs} inputs" if published.inputs else "")
        ]

    def published_train_examples(self) -> int:
        """Return how many reference texts the published training set has."""
        return self._published["train"].texts

    def load(self, split: Split) -> Entries:
        """Return a split as read, once. Raises `DataError`, also for an unknown split."""
        if split not in SPLITS:
            raise DataError(f"split {split!r}: legal are {', '.join(SPLITS)}")
        if split not in self._loaded:
            loaded = self._read(split)
            if not loaded.items:
                raise DataError(f"{self.name}: the {split} split is empty; it needs at least one item")
            self._loaded[split] = loaded
        return self._loaded[split]

    def examples(self, split: Split) -> list[Example]:
        """Return training and validation as one example per reference, test as one per distinct input."""
        if split not in self._examples:
            self._examples[split] = self._made(split)
        return [*self._examples[split]]

    def _made(self, split: Split) -> list[Example]:
        items = self.load(split).items
        examples = [
            Example(f"{self.name}/{split}/{number}", item.subset, {"input": item.input, **item.fields}, (reference,))
            for number, (item, reference) in enumerate(
                (item, reference) for item in items for reference in item.references
            )
        ]
        return self.grouped(examples) if split == "test" else examples

    @staticmethod
    def grouped(examples: Sequence[Example]) -> list[Example]:
        """Return one example per distinct input, with all its references, in the order of the first occurrence.

        Also for scoring generated text on the validation split, for which `examples` returns pairs because of its loss.
        """
        groups: dict[tuple[str, str], list[Example]] = {}
        for example in examples:
            groups.setdefault((example.subset, example.fields["input"]), []).append(example)
        return [
            replace(group[0], references=tuple(text for example in group for text in example.references))
            for group in groups.values()
        ]

    def fingerprint(self) -> dict[str, Any]:
        """Return source and reference form, and what identifies the content.

        For the hub that is the pinned revision, so that a run has its id before any download; else each split's file
        hash and counts.
        """
        if self._source == "hub":
            return {"source": "hub", "form": self._origin.form, **self._origin.hub}
        splits: dict[str, Any] = {}
        for split in SPLITS:
            if split in self._origin.from_hub:
                splits[split] = dict(self._origin.hub)
                continue
            loaded = self.load(split)
            size = _size(loaded.items)
            splits[split] = {**loaded.identity, "texts": size.texts, "inputs": size.inputs}
        return {"source": self._source, "form": self._origin.form, "splits": splits}

    def render(self, example: Example, *, training: bool) -> Prompt:
        """Return the input with its separator, and the first reference as the answer (it starts with a blank)."""
        return Prompt(example.fields["input"] + self._separator, " " + example.references[0])

    def read(self, reply: str, example: Example) -> Reading:
        """Return the first line of the reply with single blanks. An empty text is a reading: it is scored."""
        return " ".join(reply.split("<|endoftext|>")[0].strip().split("\n")[0].split())

    def score(self, readings: Sequence[Reading], examples: Sequence[Example], scoring: str) -> list[Score]:
        """Score each subset, and all together if there are several. A missing reading counts as an empty text."""
        if scoring != "generate":
            raise ConfigError(f"scoring={scoring!r}: {self.name} supports only generate")
        if len(readings) != len(examples):
            raise ValueError(f"{len(readings)} readings for {len(examples)} examples")
        subsets = list(dict.fromkeys(example.subset for example in examples))
        scores = []
        for subset in subsets if len(subsets) == 1 else [*subsets, "all"]:
            chosen = [
                (str(reading or ""), example)
                for reading, example in zip(readings, examples, strict=True)
                if subset in ("all", example.subset)
            ]
            predictions = [prediction for prediction, _ in chosen]
            references = [example.references for _, example in chosen]
            values = self._scorer(predictions, references, metrics=self.metrics)
            empty = sum(not prediction for prediction in predictions)
            rows = self._per_item(predictions, references) if self._per_item else {}
            scores.append(Score(subset, scoring, len(chosen), values, counts={"empty": empty}, per_item=rows))
        return scores


def chosen_metrics(config: RunConfig, metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics to compute. Raises `ConfigError` for an unknown one, and for METEOR without Java.

    Called when the task is built, so that a missing Java is found before training. A run that writes no texts (a trial
    of a learning rate) needs none.
    """
    chosen = config.task.metrics or tuple(metrics)
    for metric in chosen:
        if metric not in metrics:
            raise ConfigError(
                f"task.metrics (rescore: --metrics): unknown metric {metric!r}{legal_values(metric, metrics)}"
            )
    if "METEOR" in chosen and config.profile.test_items != 0 and not java.available():
        rest = ",".join(metric for metric in chosen if metric != "METEOR")
        raise ConfigError(
            f"METEOR needs Java, and the path has no working `java`. Either {java.HOW_TO_INSTALL}, or leave METEOR out "
            f"with 'task.metrics=[{rest}]'; the record and the tables then say that it was left out"
        )
    return tuple(metric for metric in metrics if metric in chosen)


def reference_form(config: RunConfig, legal: Sequence[str]) -> str:
    """Return the form of the references that the protocol asks for. Raises `ConfigError` for one that is none."""
    form = config.protocol.reference_form
    if form is None or form not in legal:
        raise ConfigError(f"unknown protocol.reference_form={form!r}{legal_values(form, legal)}")
    return form


def data_root(config: RunConfig) -> Path:
    """Return the folder of the local files or of the shipped sample; both have the same layout."""
    return Path(__file__).parent / "sample" if config.data.source == "sample" else Path(config.data.dir or ".")


def _size(items: Sequence[Entry]) -> Size:
    return Size(sum(len(item.references) for item in items), len({(item.subset, item.input) for item in items}))


def content_sha256(items: Sequence[Entry]) -> str:
    """Return a hash of inputs and references in any order, for a source that has no file hash."""
    digests = sorted(hashlib.sha256("\x1f".join((item.input, *item.references)).encode()).hexdigest() for item in items)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def linearise(triples: Iterable[Sequence[str]]) -> str:
    """Return (subject, property, object) triples as in the LoRA release, "s : p : o | s : p : o".

    Raises `ValueError` for none, or one without three non-empty texts.
    """
    parts = []
    for triple in triples:
        if len(triple) != 3 or not all(isinstance(part, str) and part.strip() for part in triple):
            raise ValueError(f"malformed triple {list(triple)!r:.100}: a subject, a property and an object are needed")
        parts.append(" : ".join(" ".join(part.split()) for part in triple))
    if not parts:
        raise ValueError("no triples")
    return " | ".join(parts)


def split_triple(text: str) -> list[str]:
    """Return the parts of "subject | property | object", as WebNLG's and DART's XML write a triple."""
    return [part.strip() for part in text.split(" | ")]
