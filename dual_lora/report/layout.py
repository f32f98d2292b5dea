"""A table as it is shown, before any format: blocks of lines of cells, with marks, notes and sources below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dual_lora.records.schema import Record
from dual_lora.report.stats import Estimate, Stratum

Verdict = Literal["better", "worse", "equal", "open", "at chance", "too few pairs", "exploratory"]

# Mark -> what it says below the table.
MARKS = {
    "c": "not better than chance",
    "u": "over 1 % of the replies could not be read (they count as wrong)",
    "m": "no MNLI start: does not compare with published values that had one",
    "f": "some seeds did not finish (listed below)",
    "x": "undefined for some seeds (a constant prediction has no correlation)",
    "g": "settings without a public source were chosen here (listed below)",
    "d": "the task's default settings: nobody chose them for this combination",
    "t": "run from a working tree with uncommitted changes",
    "s": "second-hand: read in a text about the paper, not in the paper",
}


@dataclass(frozen=True)
class ItemNoise:
    """How much a score and a difference depend on the draw of the test items, in the column's unit."""

    one: float  # standard deviation of one run's score over draws of items
    pair: float  # of the difference of two methods, their seeds as they are
    low: float | None  # 95 % interval of the difference over draws of items and seeds; None with two pairs
    high: float | None
    mcnemar: float | None  # mid-p of right against wrong answers of all seeds; None if answers are not right or wrong


@dataclass(frozen=True)
class Comparison:
    """The block's endpoint, one method against the reference. p values are adjusted for all endpoints of the page."""

    difference: Estimate
    p: float | None  # paired t, or None where there is no interval
    sign_flip: float | None  # not adjusted: it needs no distribution and cannot be small with few pairs
    p_equal: float | None  # of "they differ by the margin or more"
    blocked: Estimate | None  # the same difference with the residual variance of several methods
    items: ItemNoise | None  # None if the records do not have their items
    verdict: Verdict
    detectable: float | None = None  # with all seeds of the sweep, by the spread of the first pairs; None: too few


@dataclass(frozen=True)
class Change:
    """How a method's difference from the reference moves with each doubling of a swept setting: a block's endpoint."""

    method: str  # as in a row's choices
    label: str  # the method in words
    of: str  # what changes: "loss for each doubling of the trained weights"
    difference: Estimate  # over seeds, of each one's slope
    p: float | None
    p_equal: float | None
    margin: float | None
    verdict: Verdict
    said: str  # the verdict in words


@dataclass(frozen=True)
class Waiting:
    """Runs that are not done: how many, their GPU-hours, how many of them have no estimate and why."""

    runs: int
    hours: float
    without: int = 0
    why: str = ""

    def __add__(self, other: Waiting) -> Waiting:
        reasons = dict.fromkeys(reason for reason in (self.why, other.why) if reason)
        hours = self.hours + other.hours
        return Waiting(self.runs + other.runs, hours, self.without + other.without, "; ".join(reasons))


@dataclass(frozen=True)
class Cell:
    """One number with its spread, already scaled, or a word that says why there is none."""

    value: float | None = None
    sd: float | None = None
    n: int = 0
    decimals: int = 1
    bold: bool = False
    marks: str = ""
    word: str = ""  # out_of_memory, undefined
    low: float | None = None  # 95 % interval of the mean
    high: float | None = None
    difference: Estimate | None = None  # from the reference
    comparison: Comparison | None = None  # of the block's endpoint
    strata: tuple[Stratum, ...] = ()  # what the value is made of, scaled
    runs: tuple[str, ...] = ()  # ids of the runs that it is of
    waiting: Waiting | None = None  # of an empty cell of ours: the runs that fill it

    @property
    def empty(self) -> bool:
        return self.value is None and not self.word


@dataclass(frozen=True)
class Line:
    """One row: a published one (with the number of its source) or ours."""

    model: str
    method: str
    cells: tuple[Cell, ...]
    source: int | None = None  # None: measured here
    marks: str = ""
    n: str = ""
    trials: str = ""
    cost: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)  # of ours: setting -> value, without task and seed
    records: tuple[Record, ...] = ()  # of ours

    @property
    def origin(self) -> str:
        return "here" if self.source is None else f"published [{self.source}]"


@dataclass(frozen=True)
class Samples:
    """What the rows' models wrote for one input."""

    input: str
    reference: str
    replies: tuple[tuple[str, str], ...]  # (row, text)


@dataclass(frozen=True)
class BlockView:
    """Lines that compare with each other: one protocol, one profile."""

    heading: str
    columns: tuple[str, ...]
    cost_columns: tuple[str, ...]
    lines: tuple[Line, ...]
    legend: str  # what centre, spread and bold mean here
    reference: str | None = None  # label of the method the others are compared with
    findings: tuple[str, ...] = ()  # what the endpoint says, a sentence per method
    changes: tuple[Change, ...] = ()  # where these, not the rows, are what the endpoint decides by
    makes_smaller: str | None = None  # the experiment whose result is smaller than it says, by this block
    notes: tuple[str, ...] = ()
    samples: tuple[Samples, ...] = ()
    commands: tuple[str, ...] = ()
    takes: str = ""  # what the commands take, in words
    waiting: Waiting = Waiting(0, 0.0)  # the runs of the commands
    runs_done: int = 0
    runs_all: int = 0
    gpu_minutes: float = 0.0
    experiment: str = ""  # the name of its file in experiments/


@dataclass(frozen=True)
class TableView:
    """A whole table. `sources[k - 1]` is the source with footnote number k."""

    name: str
    title: str
    about: str
    blocks: tuple[BlockView, ...]
    sources: tuple[str, ...] = field(default_factory=tuple)

    def marks(self) -> list[str]:
        """Return the marks that occur, in the order of `MARKS`."""
        used = {
            mark
            for block in self.blocks
            for line in block.lines
            for marks in (line.marks, *(cell.marks for cell in line.cells))
            for mark in marks
        }
        return [mark for mark in MARKS if mark in used]
