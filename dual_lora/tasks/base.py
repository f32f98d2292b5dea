"""What a task is: examples, how one becomes text, how a reply is read, how a set of readings is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Split = Literal["train", "validation", "test"]
# Called with (finished items, all items) while something long goes on.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Head:
    """What the model must end in."""

    kind: Literal["causal_lm", "classification"]
    num_labels: int = 0
    regression: bool = False


@dataclass(frozen=True)
class Example:
    """One item of a split. At test time, one model input: inputs with several references are grouped."""

    identifier: str  # stable within a data source: "boolq/test/12"
    subset: str  # whose scores are reported apart: "boolq", "seen", "e2e", "matched"
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


Reading = str | float | None  # None: unreadable


class Task(Protocol):
    """Implemented by `dual_lora/tasks/*.py`; built by `dual_lora.tasks.load(config)`."""

    name: str
    head: Head
    scorings: tuple[str, ...]
    notes: tuple[str, ...]  # what is short or different about this data (kept in the record and shown by tables)

    def examples(self, split: Split) -> list[Example]:
        """Return all items of a split, in the data's order. Raises `DataError`."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the data: source, pinned revision or sha256 of each file, counts per split."""
        ...

    def published_train_examples(self) -> int:
        """Return how many examples the published data trains on, so that a plan needs no download."""
        ...

    def render(self, example: Example, *, training: bool) -> Prompt:
        """Return the text of an item. `training` matters only where the paper's protocol differs between the two."""
        ...

    def read(self, reply: str, example: Example) -> Reading:
        """Read an answer out of a reply; None if there is none."""
        ...

    def score(self, readings: Sequence[Reading], examples: Sequence[Example], scoring: str) -> list[Score]:
        """Score readings, one `Score` per subset and one for the whole ("average" or the task's name)."""
        ...
