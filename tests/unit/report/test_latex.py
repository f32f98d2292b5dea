"""A table in LaTeX compiles, within the lines and the pages of an A4 article."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dual_lora.report import latex
from dual_lora.report.layout import BlockView, Cell, Line, TableView
from tests import ROOT
from tests.unit.report.report_builder import record, seeds_of

DOCUMENT = r"""\documentclass[a4paper]{article}
\usepackage{booktabs}
\begin{document}
\input{%s}
\end{document}
"""


def wide(columns: int, rows: int) -> TableView:
    names = tuple(f"Column {number}" for number in range(columns))
    cells = tuple(Cell(62.25, 1.5, 3, bold=True, marks="c,u") for _ in names)
    lines = [
        Line("A model", f"Method number {row} with a long name (some_setting=0.{row})", cells) for row in range(rows)
    ]
    block = BlockView("A block", names, ("train s",), (*lines, Line("Another", "Short", cells, source=1)), "Legend.")
    return TableView("wide", "Wide", "", (block,), ("A source",))


def grids(text: str) -> list[list[str]]:
    """Return the rows of each tabular."""
    bodies = re.findall(r"\\midrule\n(.*?)\\bottomrule", text, re.DOTALL)
    return [[line for line in body.splitlines() if line.endswith(r"\\")] for body in bodies]


def test_latex_is_escaped_and_uses_booktabs(build):
    text = latex.latex(build(*seeds_of("lora", (0.6, 0.62, 0.64)), record("dual_lora", status="out_of_memory")))
    assert r"out\_of\_memory" in text
    assert r"A paper \& its\_table" in text
    assert r"62.0 $\pm$ 2.0" in text
    assert r"0.83 \%" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") > 0


@pytest.mark.parametrize(("columns", "rows"), [(3, 5), (30, 5), (3, 100), (12, 60)])
def test_a_table_too_wide_or_too_long_is_continued_and_loses_nothing(columns: int, rows: int) -> None:
    text = latex.latex(wide(columns, rows))
    found = grids(text)
    assert text.count("62.2") == columns * (rows + 1)
    assert all(len(grid) <= 40 for grid in found)
    assert {row.count("&") for grid in found for row in grid} <= {3, 4, 5}, "names and three wide columns are a line"
    for row in range(rows):
        parts = sum(f"number {row} with" in line for grid in found for line in grid)
        assert parts == len(found) / len(pages(found)), "each part of the columns has every row once"


def pages(found: list[list[str]]) -> set[str]:
    """Return what tells the pages of a table apart: the first method of each grid."""
    return {grid[0].split(" & ")[1] for grid in found}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex with booktabs")
@pytest.mark.parametrize("name", ["wide", *sorted(path.stem for path in (ROOT / "results" / "tables").glob("*.tex"))])
def test_it_compiles_within_the_page(name: str, tmp_path: Path) -> None:
    table = ROOT / "results" / "tables" / f"{name}.tex"
    if name == "wide":
        table = tmp_path / "wide.tex"
        table.write_text(latex.latex(wide(20, 60)), encoding="utf-8")
    (tmp_path / "document.tex").write_text(DOCUMENT % table.as_posix(), encoding="utf-8")
    command = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="latin-1")
    log = (tmp_path / "document.log").read_text(encoding="latin-1")
    assert done.returncode == 0, re.findall(r"^! .*", log, re.MULTILINE)
    assert not re.findall(r"Overfull .*|.*Float too large.*|.*multiply.defined.*", log)
