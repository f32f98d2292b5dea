"""Plots that a table asks for: one column over one swept setting, a line per method, bars for the spread over seeds."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

from dual_lora.records.schema import Record
from dual_lora.report import measured, selection
from dual_lora.report.definition import Experiment


def draw(experiment: Experiment, records: Sequence[Record], path: Path) -> bool:
    """Write the experiment's figure as SVG and return True, or False where no record gives a point.

    The same records give the same bytes: no date, fixed identifiers.
    """
    figure = experiment.block.figure
    assert figure is not None
    chosen = selection.select(experiment, [record for record in records if not selection.is_local_play(record)])
    column = next(column for column in experiment.block.columns if column.label == figure.column)
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for choices in experiment.rows():
        row = measured.measure(experiment, chosen, choices)
        cell = measured.cell(column, row.columns[column.label], None, median=experiment.block.median)
        if cell.value is not None:
            name = ", ".join(choices[key] for key in ("model", "method") if len(experiment.sweep[key]) > 1)
            point = (float(choices[figure.x]), cell.value, cell.sd or 0.0)
            lines.setdefault(name or choices["method"], []).append(point)
    if not lines:
        return False

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": experiment.name, "svg.fonttype": "none"}):
        canvas, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for name, points in lines.items():
            x, y, spread = zip(*sorted(points), strict=True)
            axes.errorbar(x, y, yerr=spread, marker="o", capsize=3, label=name)
        axes.set(xlabel=figure.x, ylabel=figure.column, title=experiment.block.block)
        if figure.log_x:
            axes.set_xscale("log")
        axes.legend()
        drawn = io.StringIO()
        canvas.savefig(drawn, format="svg", metadata={"Date": None})
        pyplot.close(canvas)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_numbered(drawn.getvalue()), encoding="utf-8")
    return True


def _numbered(svg: str) -> str:
    """Name clip paths by their order: matplotlib's hash is of their size in the last bit, which fonts decide."""
    names = list(dict.fromkeys(re.findall(r'<clipPath id="(\w+)"', svg)))
    for number, name in enumerate(names, start=1):
        svg = svg.replace(name, f"clip{number}")
    return svg
