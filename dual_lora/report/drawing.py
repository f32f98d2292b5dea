"""Figures as SVG files: the same points give the same bytes, and lines are told apart without colours too."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dual_lora.report.figures import Figure, Kind, Panel, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Colours that the three common colour blindnesses keep apart (Okabe and Ito), with a marker and a dash of its own each.
_COLORS = ("#d55e00", "#0072b2", "#009e73", "#000000", "#cc79a7", "#a07800", "#56b4e9", "#7f7f7f")
_MARKERS = "osD^vPX"  # one fewer than colours: a ninth line has another of them
_DASHES: tuple[tuple[int, tuple[float, ...]], ...] = (
    *((0, ()), (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5))),
    *((0, (8, 2)), (0, (3, 1)), (0, (2, 3)), (0, (8, 2, 1, 2, 1, 2))),
)
_FIRST = ("Dual LoRA", "LoRA", "DoRA", "Full fine-tuning")  # what most figures have looks the same in all
_NOTES: dict[Kind, str] = {
    "rates": "bars: one sd over seeds",
    "differences": "bars: 95 % intervals, paired by seed; grey: the margin of equality",
    "curves": "lines: mean over seeds; bands: their range",
    "cost": "bars: one sd over seeds",
    "inside": "lines: mean over runs; bands: their range",
    "speed": "measured medians, and what a model of the work expects",
}
_MARKED = "; filled: the best of its grid; ringed: that is an end of the grid"
_WIDTH, _HEIGHT = 3.7, 3.1  # of a panel, inches
_FEW = 12  # points of a line that get a marker each
_FONT = re.compile(r'(<text style="[^"]*?) font-family: ([^;"]*);?')


def draw(figure: Figure, path: Path) -> bool:
    """Write a figure, unless the file has these points; return False where no record gives one."""
    if not figure.panels:
        return False
    if is_drawn(figure, path):
        return True

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(  # a label is text, also one with dollars in it
        {"svg.hashsalt": figure.name, "svg.fonttype": "none", "font.size": 9, "text.parse_math": False}
    ):
        count = len(figure.panels)
        columns = min(count, 3 if count % 4 else 4)
        rows = math.ceil(count / columns)
        size = (max(_WIDTH * columns, 6), _HEIGHT * rows + 0.9)
        canvas, grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        looks = _looks(method for panel in figure.panels for method in panel.lines)
        for number, (panel, axes) in enumerate(zip(figure.panels, grid.flat, strict=False)):
            if figure.kind == "differences":
                _intervals(axes, panel, looks, number, named=number % columns == 0)
            else:
                _lines(axes, panel, looks, number, figure)
        for axes in grid.flat[count:]:
            axes.set_visible(False)
        handles = {
            text: line for axes in grid.flat for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        if figure.kind != "differences":
            canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
        marked = any(p.chosen for panel in figure.panels for points in panel.lines.values() for p in points)
        note = f"{_NOTES[figure.kind]}{_MARKED if marked else ''}"
        canvas.suptitle("\n".join([*textwrap.wrap(figure.title, round(14 * size[0])), note]), fontsize=9)
        drawn = io.StringIO()
        canvas.savefig(drawn, format="svg", metadata={"Date": None, "Description": _mark(figure)})
        pyplot.close(canvas)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_tidy(_numbered(drawn.getvalue())), encoding="utf-8")
    return True


def is_drawn(figure: Figure, path: Path) -> bool:
    """Whether a file has the points of a figure, drawn as they are drawn now."""
    return path.exists() and _mark(figure) in path.read_text(encoding="utf-8")


def _mark(figure: Figure) -> str:
    """Return what tells a figure's points, to six digits, and the code that draws them from any other."""
    digits = re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.6g}", repr(figure))
    code = Path(__file__).read_text(encoding="utf-8")
    return f"points {hashlib.sha256(f'{digits}{code}'.encode()).hexdigest()[:16]}"


_Look = tuple[str, str, tuple[int, tuple[float, ...]]]


def _looks(methods: Iterable[str]) -> dict[str, _Look]:
    """Return colour, marker and dash of each method."""
    names = dict.fromkeys([*_FIRST, *methods])
    kinds = zip(itertools.cycle(_COLORS), itertools.cycle(_MARKERS), itertools.cycle(_DASHES))
    return dict(zip(names, kinds, strict=False))


def _lines(axes: Axes, panel: Panel, looks: dict[str, _Look], number: int, figure: Figure) -> None:
    ranged = "bars" if figure.kind in ("rates", "cost") else "band"
    for method, points in panel.lines.items():
        color, marker, dash = looks[method]
        x, y = [point.x for point in points], [point.y for point in points]
        few = len(points) <= _FEW
        axes.plot(
            *(x, y), color=color, linestyle=dash, linewidth=1.3, label=method, gid=f"line{number}:{method}",
            marker=marker if few else "", markerfacecolor="white", markersize=5.5,
        )  # fmt: skip
        low, high = [[_or(end, point.y) for point, end in zip(points, ends, strict=True)] for ends in _ends(points)]
        if ranged == "band":
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        else:
            axes.vlines(x, low, high, color=color, linewidth=1)
        chosen = [point for point in points if point.chosen]
        axes.plot(
            *([point.x for point in chosen], [point.y for point in chosen]),
            color=color, linestyle="", marker=marker, markersize=7, gid=f"chosen{number}:{method}",
        )  # fmt: skip
        ends = [point for point in chosen if point.end]
        axes.plot(
            *([point.x for point in ends], [point.y for point in ends]),
            color="black", linestyle="", marker="o", markersize=13, markerfacecolor="none", gid=f"end{number}:{method}",
        )  # fmt: skip
    better = f" ({panel.better} is better)" if panel.better else ""
    axes.set(xlabel=panel.x, ylabel=f"{panel.y}{better}")
    if panel.log_x:
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, [point.x for points in panel.lines.values() for point in points])
    if panel.log_y and all(point.y > 0 for points in panel.lines.values() for point in points):
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, [point.y for points in panel.lines.values() for point in points])


def _ends(points: Sequence[Point]) -> tuple[list[float | None], list[float | None]]:
    return [point.low for point in points], [point.high for point in points]


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _plain_ticks(axis: Axis, values: Sequence[float]) -> None:
    from matplotlib import ticker

    wide = max(values) / min(values)
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if wide < 10 else (1, 3) if wide < 100 else (1,)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _short(value)))
    axis.set_minor_locator(ticker.NullLocator())


def _short(value: float) -> str:
    """Return "0.001", "300", "1,000", "30M": millions in full would run into each other."""
    return f"{value / 1e6:,g}M" if value >= 1e6 else f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _intervals(axes: Axes, panel: Panel, looks: dict[str, _Look], number: int, *, named: bool) -> None:
    """Draw a row for each method: its difference as a marker, the interval as a bar, the margin in grey."""
    if panel.margin is not None:
        axes.axvspan(-panel.margin, panel.margin, color="0.9", zorder=0)
    axes.axvline(0, color="0.4", linewidth=0.8)
    for method, (point,) in panel.lines.items():
        color, marker, _ = looks[method]
        if point.low is not None and point.high is not None:
            axes.hlines(point.y, point.low, point.high, color=color, linewidth=1.6)
        axes.plot([point.x], [point.y], color=color, marker=marker, linestyle="", gid=f"line{number}:{method}")
    rows = {point.y: method for method, (point,) in panel.lines.items()}
    axes.set(
        yticks=list(rows), yticklabels=list(rows.values()) if named else [], ylim=(min(rows) - 0.7, max(rows) + 0.7)
    )
    axes.set(xlabel=f"{panel.x}\n({'right' if panel.better == 'higher' else 'left'} is better)")


def _numbered(svg: str) -> str:
    """Name clip paths by their order: matplotlib's hash is of their size in the last bit, which fonts decide."""
    names = list(dict.fromkeys(re.findall(r'<clipPath id="(\w+)"', svg)))
    for number, name in enumerate(names, start=1):
        svg = svg.replace(name, f"clip{number}")
    return svg


def _tidy(svg: str) -> str:
    """Put a path on one line, and name the font once, for all texts: matplotlib has a line a point, a font a text."""
    svg = re.sub(r'(<path(?: id="\w+")? d=")([^"]*)', lambda path: path[1] + " ".join(path[2].split()), svg)
    families = dict.fromkeys(family for _, family in _FONT.findall(svg))
    return _FONT.sub(r"\1", svg).replace("<svg ", f'<svg font-family="{", ".join(families)}" ', 1)
