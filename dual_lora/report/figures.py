"""Plots that a table asks for: one column over one swept setting, a line per method, bars for the spread over seeds."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from dual_lora.report import labels, measured
from dual_lora.report.definition import Figure
from dual_lora.report.measured import MeasuredBlock

_MARKERS = "osD^vPX*"  # lines are told apart without colours too
_Point = tuple[float, float, float]  # x, y, spread


def draw(title: str, blocks: Sequence[MeasuredBlock], configs: Path, path: Path) -> bool:
    """Write one figure of all blocks as SVG and return True, or False where no record gives a point.

    The figure is that of the first block, a line per model and method of any. The same records give the same bytes: no
    date, fixed identifiers.
    """
    figure = blocks[0].experiment.block.figure
    assert figure is not None
    lines = _lines(blocks, figure, configs)
    if not lines:
        return False

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):
        canvas, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for (name, points), marker in zip(lines.items(), itertools.cycle(_MARKERS)):
            x, y, spread = zip(*sorted(points), strict=True)
            axes.errorbar(x, y, yerr=spread if any(spread) else None, marker=marker, capsize=3, label=name)
        axes.set(xlabel=labels.of_setting(figure.x), ylabel=figure.column, title=title)
        if figure.log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.legend()
        drawn = io.StringIO()
        canvas.savefig(drawn, format="svg", metadata={"Date": None})
        pyplot.close(canvas)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_numbered(drawn.getvalue()), encoding="utf-8")
    return True


def _lines(blocks: Sequence[MeasuredBlock], figure: Figure, configs: Path) -> dict[str, list[_Point]]:
    several = len({model for block in blocks for model in block.experiment.sweep["model"]}) > 1
    lines: dict[str, list[_Point]] = {}
    for block in blocks:
        experiment = block.experiment
        column = next(column for column in experiment.block.columns if column.label == figure.column)
        for row in block.rows:
            cell = measured.cell(column, row.columns[column.label], None, median=experiment.block.median)
            if cell.value is None:
                continue
            parts = ("model", "method") if several else ("method",)
            name = ", ".join(labels.plain(configs, experiment, part, row) for part in parts)
            lines.setdefault(name, []).append((float(row.choices[figure.x]), cell.value, cell.sd or 0.0))
    return lines


def _numbered(svg: str) -> str:
    """Name clip paths by their order: matplotlib's hash is of their size in the last bit, which fonts decide."""
    names = list(dict.fromkeys(re.findall(r'<clipPath id="(\w+)"', svg)))
    for number, name in enumerate(names, start=1):
        svg = svg.replace(name, f"clip{number}")
    return svg
