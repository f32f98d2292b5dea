"""What a task is: examples, how one becomes text, how a reply is read, how a set of readings is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dual_lora.config import ConfigError

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Head:
    """The head that the model must have."""

    kind: Literal["causal_lm", "classification"]
    num_labels: int = 0
    regression: bool = False


@dataclass(frozen=True)
class Example:
    """One item of a split. At test time, one model input: inputs with several references are grouped."""

    identifier: str  # stable within a data source: "boolq/test/12"
    subset: str  # scores are reported for each subset: "boolq", "seen", "e2e", "matched"
    fields: Mapping[str, Any]  # what the file holds
    references: tuple[str, ...]  # the right label, or every reference text


@dataclass(frozen=True)
class Prompt:
    """Text for a causal model: what it reads, and what it should write."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Score:
    """The scores of one subset under one way of scoring. Metrics are fractions (0-1) unless the metric is unbounded."""

    subset: str
    scoring: str  # generate, likelihood, cloze, classify
    items: int
    metrics: Mapping[str, float | None]  # None: undefined (a correlation of a constant), never 0
    unreadable: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)  # e.g. out_of_range, not_exact_sentence
    chance: float | None = None  # of the headline metric
    at_chance: bool | None = None
    per_item: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # metric -> a row per item: `records.per_item`


Reading = str | float | None  # None: unreadable


class Task(ABC):
    """Base of every task in `dual_lora/tasks/*.py`; built by `dual_lora.tasks.load(config)`."""

    name: str
    head: Head
    scorings: tuple[str, ...]
    metrics: tuple[str, ...]  # what `score` gives for all items under the first scoring: one of them is the headline
    free_text = False  # replies are texts worth reading: some go into the record
    unused: Mapping[str, Sequence[Any]] = {}  # setting without effect here -> its only legal values: tasks.unused
    settles_early = False  # `complete` can tell before the model stops

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What is missing or different in this data (kept in the record and shown by tables)."""

    @abstractmethod
    def examples(self, split: Split) -> list[Example]:
        """Return all items of a split, in the data's order. Raises `DataError`."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the data: source, pinned revision or sha256 of each file, counts per split."""

    @abstractmethod
    def published_train_examples(self) -> int:
        """Return how many examples the published data trains on, so that a plan needs no download."""

    @abstractmethod
    def render(self, example: Example, *, training: bool) -> Prompt:
        """Return the text of an item. `training` matters only where the paper's protocol differs between the two."""

    @abstractmethod
    def read(self, reply: str, example: Example) -> Reading:
        """Read the answer in a reply; None if there is none."""

    @abstractmethod
    def score(self, readings: Sequence[Reading], examples: Sequence[Example], scoring: str) -> list[Score]:
        """Score readings, one `Score` per subset and one for the whole ("average" or the task's name)."""

    def complete(self, reply: str, example: Example) -> bool:
        """Whether more text cannot change the reading, so that generation may stop. Called if `settles_early`."""
        return False

    def ranking(self, example: Example, scoring: str) -> tuple[str, tuple[str, ...]]:
        """Return the prompt and the candidate answers whose likelihoods the scoring compares."""
        raise ConfigError(f"task={self.name} has no candidates to rank (task.scorings={scoring}); use generate")

    def choose(self, example: Example, scoring: str, log_probabilities: Sequence[float]) -> Reading:
        """Return the reading of an item from the log-likelihoods of its candidates, in their order."""
        raise ConfigError(f"task={self.name} has no candidates to choose from (task.scorings={scoring}); use generate")


class ClassificationTask(Task):
    """A task whose model ends in a classification head."""

    labels: tuple[str, ...]  # empty: regression

    @abstractmethod
    def texts(self, example: Example) -> tuple[str, ...]:
        """Return the one or two texts of an item, in the order the encoder reads them."""

    @abstractmethod
    def target(self, example: Example) -> int | float:
        """Return the class number or, for a regression, the number the model is trained towards."""

    @abstractmethod
    def selection_score(self, readings: Sequence[Reading], examples: Sequence[Example]) -> float | None:
        """Return what an epoch is chosen by: the headline metric over all items (None: undefined, counts as lowest)."""
