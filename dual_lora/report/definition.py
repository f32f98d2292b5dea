"""What a table shows, read from `experiments/NAME.yaml`: the same file that drives the sweep.

Such a file is a Hydra config of the group `experiment`. `hydra.sweeper.params` names every choice of the sweep, fixed
ones too, so `python run.py -m experiment=NAME` does exactly the runs that the table selects; the key `table`, which a
run ignores, says how they are shown. One file is one block: one protocol, one profile. A file with a `title` is a
table; its `blocks` are names of experiment files (its own among them, in the order shown).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hydra.errors import HydraException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dual_lora.config.choices import values_of_word
from dual_lora.records.schema import GROUPS
from dual_lora.report.experiment_files import DefinitionError, known, stated

_STRICT = ConfigDict(extra="forbid")
REQUIRED_CHOICES = ("model", "task", "method", "protocol", "profile", "seed")
CostColumn = Literal["train_seconds", "eval_seconds", "tokens_per_second", "peak_memory", "trainable_parameters"]


@dataclass(frozen=True, config=_STRICT)
class Column:
    """Which measurement of a record a column shows. What is not stated is taken from the record's headline."""

    label: str
    panel: str | None = None  # columns of one panel form one grid; a block may have several, one below the other
    task: str | None = None  # needed where the sweep has several tasks
    subset: str | None = None
    metric: str | None = None
    scoring: str | None = None
    checkpoint: str | None = None
    split: str | None = None
    scale: float = 100.0  # 100 turns a fraction into a percentage; 1 for unbounded metrics
    decimals: int = 1
    better: Literal["higher", "lower"] = "higher"
    # Instead of a measurement the last value of this curve (validation_loss), or of a measure of the diagnostics
    # (diagnostics.zero_share) the mean over the watched steps, or over the layers at the end.
    curve: str | None = None
    average: bool = False  # the mean of the panel's columns before this one; no measurement of its own
    subsets: tuple[str, ...] = ()  # the mean over these subsets of a run, instead of one `subset`
    published: tuple[str, ...] = ()  # names of the task in results/published
    published_metric: str | None = None  # where one task has several


@dataclass(frozen=True, config=_STRICT)
class PublishedRows:
    """Rows of results/published that are shown with ours."""

    file: str
    table: str
    source: str | None = None  # a part of the source's name
    methods: dict[str, tuple[str, ...]] = field(default_factory=dict)  # our method -> its published names
    only: tuple[str, ...] | None = None  # published methods to show; None: all


@dataclass(frozen=True, config=_STRICT)
class SweptFigure:
    """A plot of the first column over one swept setting, one line per method."""

    x: str  # a key of the sweep, e.g. recipe.learning_rate
    column: str
    log_x: bool = False


@dataclass(frozen=True, config=_STRICT)
class Endpoint:
    """The one comparison that a block is made for, named before its runs. Other columns are shown without a verdict."""

    column: str
    named: datetime  # when it was written into the file, with its time zone; runs older than that get no verdict
    margin: float | None = None  # differences up to it count as equal, in the column's unit; None: not asked
    blocked: tuple[str, ...] | None = None  # methods whose residual variance is pooled; None: all trained ones


@dataclass(frozen=True, config=_STRICT)
class Trend:
    """How a result moves with a swept setting, said below the table (`report.trend`).

    best rate: of each method the learning rate with the lowest value of the column, as a power of `over` (numbers), or
    with `against` its ratio to that method's best rate at each value of `over`. difference: between methods and the
    block's reference, for each doubling of `over`: then that, not the single rows, is the block's endpoint.
    reference: of the reference itself, at the second of two values of `over` minus the first; if it is better there,
    the result of another experiment, which had it at the first, is smaller than that experiment says.
    """

    of: Literal["best rate", "difference", "reference"]
    column: str
    over: str  # a setting of the sweep
    against: str | None = None
    margin: float | None = None  # of a difference, for each doubling: changes up to it count as none
    revises: str | None = None  # the other experiment
    result: str = ""  # its result in words


@dataclass(frozen=True, config=_STRICT)
class Block:
    """The `table` section of one experiment file."""

    block: str  # the block's heading
    columns: tuple[Column, ...]
    title: str | None = None  # set: this file is a table of its own
    about: str = ""
    blocks: tuple[str, ...] = ()
    reference: str | None = None  # the method the others are compared with
    endpoint: Endpoint | None = None  # required with a reference
    trials: tuple[str, ...] = ()  # experiments by which `run.py tune` chooses what this block's methods get
    candidates: tuple[str, ...] = ()  # methods of which only the one with the best trials is run and shown
    median: bool = False  # the published way of GLUE: median of five seeds
    labels: dict[str, str] = field(default_factory=dict)  # names of models, methods, swept values, if not configs/'s
    cost: tuple[CostColumn, ...] = ("train_seconds", "peak_memory", "trainable_parameters")
    published: tuple[PublishedRows, ...] = ()
    published_models: dict[str, str] = field(default_factory=dict)  # our model -> its published name
    published_other_models: tuple[str, ...] = ()
    samples: bool = False  # show what each row's first seed wrote for a few test inputs
    published_notes: tuple[str, ...] = ()  # files whose other rows about these columns are listed below the table
    figure: SweptFigure | None = None
    trend: Trend | None = None

    @property
    def decides_by_trend(self) -> bool:
        """Whether the endpoint is how a difference changes with a swept setting."""
        return self.endpoint is not None and self.trend is not None and self.trend.of == "difference"

    @property
    def checks(self) -> str | None:
        """The experiment whose result this block makes sure of, and so is no further one."""
        return self.trend.revises if self.trend else None

    def column(self, label: str) -> Column:
        return next(column for column in self.columns if column.label == label)


@dataclass(frozen=True)
class Experiment:
    """One experiment file: its sweep (setting -> values, in order) and its block."""

    name: str
    sweep: dict[str, tuple[str, ...]]
    block: Block

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.sweep["task"]

    @cached_property
    def names(self) -> frozenset[tuple[str, ...]]:
        """What runs of the sweep are called: by model, task, method, protocol and profile (`Record.names`)."""
        return frozenset(itertools.product(*(self.sweep[part] for part in GROUPS)))

    def panels(self) -> dict[str | None, tuple[Column, ...]]:
        """Return the block's grids: panel name (None where there is one) -> its columns."""
        panels: dict[str | None, tuple[Column, ...]] = {}
        for column in self.block.columns:
            panels[column.panel] = (*panels.get(column.panel, ()), column)
        return panels

    def tasks_of(self, label: str) -> list[str]:
        """Return the tasks whose runs a column needs: for an average, those of the columns before it."""
        column = next(column for column in self.block.columns if column.label == label)
        if not column.average:
            return [column.task or self.tasks[0]]
        panel = self.panels()[column.panel]
        return list(dict.fromkeys(c.task or self.tasks[0] for c in panel if not c.average))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        return tuple(int(seed) for seed in self.sweep["seed"])

    def runs(self) -> list[dict[str, str]]:
        """Return every run of the sweep as setting -> value, in the order Hydra starts them."""
        return [dict(zip(self.sweep, values, strict=True)) for values in itertools.product(*self.sweep.values())]

    def rows(self) -> list[dict[str, str]]:
        """Return the table's rows: the runs without task (a column's) and seed (averaged over)."""
        rows = [{key: value for key, value in run.items() if key not in ("task", "seed")} for run in self.runs()]
        return [dict(row) for row in dict.fromkeys(tuple(row.items()) for row in rows)]


def read(path: Path) -> Experiment:
    """Return the experiment in a file. Raises `DefinitionError`."""
    params, table = stated(path)
    sweep = {key: _choices(path, key, value) for key, value in params.items()}
    missing = [key for key in REQUIRED_CHOICES if key not in sweep]
    if missing:
        raise DefinitionError(
            f"{path}: hydra.sweeper.params lacks {', '.join(missing)}; state every one, also if it has one value"
        )
    for key in ("protocol", "profile"):
        if len(sweep[key]) > 1:
            raise DefinitionError(
                f"{path}: {key}={','.join(sweep[key])}: one block shows one {key}; write another file"
            )
    defaults = table.pop("column_defaults", {})
    table["columns"] = [{**defaults, **column} for column in table.get("columns", [])]
    block = _block(path, table)
    _check(path, sweep, block)
    return Experiment(path.stem, sweep, block)


def read_all(folder: Path) -> dict[str, Experiment]:
    """Return every experiment of a folder by name. Raises `DefinitionError`, also for a block that does not exist."""
    experiments = {path.stem: read(path) for path in sorted(folder.glob("*.yaml"))}
    for name, experiment in experiments.items():
        revised = experiment.block.trend.revises if experiment.block.trend else None
        for other in (*experiment.block.blocks, *experiment.block.trials, *([revised] if revised else [])):
            known(f"{folder / name}.yaml: block {other!r} does not exist", other, experiments)
    return experiments


def named(experiments: Mapping[str, Experiment], name: str) -> Experiment:
    """Return the experiment of that name. Raises `DefinitionError`."""
    known(f"experiment {name!r} does not exist", name, experiments)
    return experiments[name]


def tables(experiments: Mapping[str, Experiment]) -> dict[str, list[Experiment]]:
    """Return table name -> its blocks, for every file with a title."""
    return {
        name: [experiments[block] for block in (experiment.block.blocks or (name,))]
        for name, experiment in experiments.items()
        if experiment.block.title
    }


def _choices(path: Path, key: str, value: Any) -> tuple[str, ...]:
    """Return the values of one sweep setting as Hydra's own grammar reads them."""
    try:
        return values_of_word(f"{key}={value}")
    except HydraException as error:
        raise DefinitionError(f"{path}: hydra.sweeper.params.{key}={value!r}: {error}") from None


def _block(path: Path, table: Mapping[str, Any]) -> Block:
    for column in table["columns"]:
        if isinstance(column.get("published"), str):
            column["published"] = [column["published"]]
    for rows in table.get("published", []):
        rows["methods"] = {
            ours: [theirs] if isinstance(theirs, str) else theirs for ours, theirs in rows.get("methods", {}).items()
        }
    try:
        return TypeAdapter(Block).validate_python(dict(table))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise DefinitionError(f"{path}: table: {problems}") from None


def _check(path: Path, sweep: Mapping[str, tuple[str, ...]], block: Block) -> None:
    labels = [column.label for column in block.columns]
    if not labels or len(set(labels)) < len(labels):
        raise DefinitionError(f"{path}: table.columns: needs at least one, each with its own label; got {labels}")
    for column in block.columns:
        if not column.average and column.task is None and len(sweep["task"]) > 1:
            raise DefinitionError(f"{path}: column {column.label!r} needs a task: {', '.join(sweep['task'])}")
        if column.task is not None:
            known(f"{path}: column {column.label!r}: task {column.task!r}", column.task, sweep["task"])
    if block.reference is not None:
        known(f"{path}: table.reference={block.reference!r}", block.reference, sweep["method"])
    for method in block.candidates:
        known(f"{path}: table.candidates: {method!r}", method, sweep["method"])
    if block.candidates and not block.trials:
        raise DefinitionError(f"{path}: table.candidates needs table.trials, by which the best one is chosen")
    _check_endpoint(path, sweep, block, labels)
    if block.figure is not None and (block.figure.x not in sweep or block.figure.column not in labels):
        raise DefinitionError(f"{path}: table.figure: x must be a setting of the sweep, column one of {labels}")
    if block.trend is not None:
        _check_trend(path, sweep, block, block.trend, labels)


def _check_trend(
    path: Path, sweep: Mapping[str, tuple[str, ...]], block: Block, trend: Trend, labels: list[str]
) -> None:
    if trend.over not in sweep or trend.column not in labels:
        raise DefinitionError(f"{path}: table.trend: over must be a setting of the sweep, column one of {labels}")
    against = trend.against if trend.of == "best rate" else block.reference
    if against is not None:
        known(f"{path}: table.trend: against={against!r}", against, sweep["method"])
    if trend.of != "best rate" and against is None:
        raise DefinitionError(f"{path}: table.trend: a {trend.of} is that of table.reference; name that method")
    if trend.of == "reference" and (len(sweep[trend.over]) != 2 or not trend.revises):
        raise DefinitionError(f"{path}: table.trend: of=reference needs two values of {trend.over}, and revises")


def _check_endpoint(path: Path, sweep: Mapping[str, tuple[str, ...]], block: Block, labels: list[str]) -> None:
    if block.endpoint is None:
        if block.reference is not None:
            raise DefinitionError(
                f"{path}: table.reference={block.reference} compares methods, so name the one column that decides, "
                "before its runs: table.endpoint: {column: ..., named: 2026-01-31T12:00+00:00, margin: ...}; "
                f"columns: {', '.join(labels)}"
            )
        return
    if block.reference is None:
        raise DefinitionError(f"{path}: table.endpoint needs table.reference, the method to compare with")
    column, margin = block.endpoint.column, block.endpoint.margin
    if block.endpoint.named.tzinfo is None:
        raise DefinitionError(f"{path}: table.endpoint.named={block.endpoint.named}: add the time zone, as in +00:00")
    known(f"{path}: table.endpoint.column={column!r}", column, labels)
    if margin is not None and margin <= 0:
        raise DefinitionError(f"{path}: table.endpoint.margin={margin}: a positive number in the column's unit")
    for method in block.endpoint.blocked or ():
        known(f"{path}: table.endpoint.blocked: {method!r}", method, sweep["method"])
    if block.endpoint.blocked is not None and block.reference not in block.endpoint.blocked:
        raise DefinitionError(f"{path}: table.endpoint.blocked lacks the reference {block.reference!r}")
