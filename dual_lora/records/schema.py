"""What a record holds: one schema number, one set of statuses, and the types of all that a table reads.

Records of older schema versions go through `UPGRADES` one version at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dual_lora.config.errors import ConfigError

SCHEMA = 3
GROUPS = ("model", "task", "method", "protocol", "profile")
CHECKED_SINCE = 3  # records of this schema and newer ones hold a checksum


def _without_learning_rates(values: dict[str, Any]) -> dict[str, Any]:
    """1 -> 2: the curve of the learning rate is derived (`records.learning_rates`)."""
    curves = {name: curve for name, curve in values.get("curves", {}).items() if name != "learning_rate"}
    return {**values, "curves": curves}


def _without_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """2 -> 3: nothing shows that a score of an older record is as its run wrote it."""
    return values


# Schema version -> the function that turns a record of it into one of the next version.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _without_learning_rates, 2: _without_checksum}
Status = Literal["finished", "diverged", "out_of_memory", "timed_out", "interrupted", "failed"]
# A record may hold more than a table reads; the fields that a table reads are type-checked.
_TYPED = ConfigDict(extra="ignore", allow_inf_nan=False)
_Count = Annotated[int, Field(ge=0)]
_Amount = Annotated[float, Field(ge=0)]


class RecordError(ConfigError):
    """A record that cannot be used; the message names the file, the field and what is wrong with it."""


@dataclass(frozen=True, config=_TYPED)
class Measurement:
    """The scores of one subset, checkpoint and way of scoring. Metrics are fractions unless unbounded (NIST, CIDEr)."""

    subset: str
    split: str
    checkpoint: str  # last, best_loss, best_score, base
    scoring: str
    items: Annotated[int, Field(ge=1)]
    metrics: dict[str, float | None]  # None: undefined, e.g. the correlation of a constant
    unreadable: _Count = 0
    counts: dict[str, _Count] = field(default_factory=dict)
    chance: float | None = None
    at_chance: bool | None = None


@dataclass(frozen=True, config=_TYPED)
class Headline:
    """The one number a run is known by."""

    metric: str
    value: float | None
    subset: str
    scoring: str
    checkpoint: str


@dataclass(frozen=True, config=_TYPED)
class Sample:
    """What a model wrote for one test input."""

    input: str
    reply: str
    reference: str  # the first one


@dataclass(frozen=True, config=_TYPED)
class Scores:
    """All a run measured. A run that failed may have measured nothing."""

    headline: Headline | None = None
    measurements: tuple[Measurement, ...] = ()
    notes: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    per_item: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)  # `records.per_item`


@dataclass(frozen=True, config=_TYPED)
class Cost:
    """What a run took: seconds, bytes (peak memory of each rank), parameters."""

    train_seconds: _Amount | None = None
    eval_seconds: _Amount | None = None
    tokens_per_second: _Amount | None = None
    peak_memory_bytes: tuple[_Count, ...] = ()
    adapter_bytes: _Count | None = None
    trainable_parameters: _Count | None = None
    trainable_parameters_without_head: _Count | None = None
    total_parameters: _Count | None = None
    train_flops: _Amount | None = None

    @property
    def peak_gib(self) -> float | None:
        """Return the largest peak of any rank, in GiB."""
        return max(self.peak_memory_bytes) / 2**30 if self.peak_memory_bytes else None


@dataclass(frozen=True, config=_TYPED)
class Record:
    """One run. `identity` is everything that can change a number, as plain dictionaries."""

    status: Status
    identity: dict[str, Any]
    scores: Scores = field(default_factory=Scores)
    cost: Cost = field(default_factory=Cost)
    curves: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    message: str | None = None

    @property
    def run_id(self) -> str:
        return str(self.identity["run_id"])

    @property
    def seed(self) -> int:
        return int(self.identity["seed"])

    @property
    def untrained(self) -> bool:
        """Whether this is a base row: seed and recipe are no part of its identity."""
        return bool(self.identity["method"].get("trains") == "nothing")

    @property
    def parallel(self) -> int:
        """Return how many runs its machine did at a time, which its seconds depend on. If older: by the command."""
        told = re.search(r"\blaunch\.parallel=(\d+)", str(self.origin.get("command", "")))
        return int(self.execution.get("parallel") or (told[1] if told else 1))

    @property
    def guessed(self) -> tuple[str, ...]:
        """Return the recipe settings whose source is the word `guess`."""
        sources: Mapping[str, Any] = self.origin.get("recipe_sources") or {}
        return tuple(sorted(name for name, source in sources.items() if str(source).lower().startswith("guess")))

    @property
    def trials(self) -> int:
        """Return how many learning rates were tried to find the one used."""
        return int(self.origin.get("recipe_trials") or 1)

    def name(self, part: str) -> str:
        """Return the name of the record's model, task, method, protocol, profile or recipe."""
        return str(self.identity[part]["name"])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of its model, task, method, protocol and profile: what most runs of other sweeps differ in."""
        return tuple(self.name(part) for part in GROUPS)

    @cached_property
    def source(self) -> str | None:
        """Where its data is from: hub, local or sample."""
        return self.identity.get("data", {}).get("source")


@dataclass(frozen=True, config=_TYPED)
class _Execution:
    device: str = ""
    cards: tuple[str, ...] = ()
    world_size: _Count = 1
    parallel: _Count = 1
    resumed_from: tuple[int, ...] = ()


@dataclass(frozen=True, config=_TYPED)
class _Origin:
    commit: str | None = None  # neither is known without git: an installed package, an unpacked archive
    dirty: bool | None = None
    command: str = ""
    started: str = ""
    finished: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    recipe_sources: dict[str, Any] = field(default_factory=dict)
    recipe_trials: int = 1


_Point = Annotated[list[float | None], Field(min_length=2, max_length=2)]
_ADAPTER = TypeAdapter(Record)
# What is read of the parts that stay dictionaries; "diagnostics" is no curve.
_PARTS: dict[str, TypeAdapter[Any]] = {
    "curves": TypeAdapter(dict[str, dict[str, Any] | list[_Point]]),
    "execution": TypeAdapter(_Execution),
    "origin": TypeAdapter(_Origin),
}
_NAMED_PARTS = ("model", "task", "method", "recipe", "protocol", "profile")


def upgraded(values: Mapping[str, Any], path: str = "the record") -> dict[str, Any]:
    """Return a record of any known schema version in the current one. Raises `RecordError`."""
    values = dict(values)
    version = values.get("schema")
    if isinstance(version, bool) or not isinstance(version, int) or version > SCHEMA:
        raise RecordError(
            f"{path}: schema={version!r}; this version of the suite reads schema 1 to {SCHEMA}: update it"
        )
    while version < SCHEMA:
        if version not in UPGRADES:
            raise RecordError(f"{path}: schema={version}: there is no upgrade from it to {SCHEMA}")
        values = UPGRADES[version](values)
        version += 1
    return {**values, "schema": SCHEMA}


def parse(values: Mapping[str, Any], path: str = "the record") -> Record:
    """Return the typed record of a dictionary in any known schema version. Raises `RecordError`."""
    values = upgraded(values, path)
    part = ""
    try:
        record = _ADAPTER.validate_python(values)
        for part, adapter in _PARTS.items():
            adapter.validate_python(getattr(record, part))
    except ValidationError as error:
        places = [(".".join([*([part] if part else []), *map(str, e["loc"])]), e["msg"]) for e in error.errors()[:5]]
        problems = "; ".join(f"{place}: {said}" for place, said in places)
        raise RecordError(f"{path}: {problems}") from None
    for part in _NAMED_PARTS:
        if not isinstance(record.identity.get(part), Mapping) or "name" not in record.identity[part]:
            raise RecordError(f"{path}: identity.{part}.name is missing")
    for key in ("run_id", "seed"):
        if key not in record.identity:
            raise RecordError(f"{path}: identity.{key} is missing")
    if isinstance(record.identity["seed"], bool) or not isinstance(record.identity["seed"], int):
        raise RecordError(f"{path}: identity.seed={record.identity['seed']!r}: it must be an integer")
    if record.status == "finished" and record.scores.headline is None:
        raise RecordError(f"{path}: status is finished but scores.headline is missing")
    _check_scores(record.scores, path)
    return record


def _check_scores(scores: Scores, path: str) -> None:
    for number, entry in enumerate(scores.measurements):
        if entry.unreadable > entry.items:
            raise RecordError(
                f"{path}: scores.measurements.{number}: {entry.unreadable} unreadable replies to {entry.items} items"
            )
    shown = scores.headline
    if shown is None:
        return
    values = [
        entry.metrics[shown.metric]
        for entry in scores.measurements
        if shown.metric in entry.metrics
        and (entry.subset, entry.scoring, entry.checkpoint) == (shown.subset, shown.scoring, shown.checkpoint)
    ]
    if shown.value not in values:
        raise RecordError(
            f"{path}: scores.headline is {shown.metric} {shown.value} of {shown.subset}, which no measurement holds "
            f"(they hold {values or 'none'})"
        )
