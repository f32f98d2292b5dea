"""Labels, notes, sources and replies are other people's texts: they are shown, and do nothing."""

from __future__ import annotations

import csv
import html
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dual_lora.records.schema import parse
from dual_lora.report import escape, formats, latex
from dual_lora.report.layout import BlockView, Cell, Line, Samples, TableView
from dual_lora.report.screen import comparison
from dual_lora.report.stats import Estimate
from dual_lora.report.terminal import FittedTable
from tests.unit.report.report_builder import record

HOSTILE = [
    "[a link](https://example.org)", "![an image](https://example.org/x.png)", "[x]: https://example.org",
    "<b>bold</b>", "**bold** _slanted_ `code` ~~gone~~", "&lt;tag&gt;", "# heading", "1. item", "- item", "> quote",
    '=HYPERLINK("https://example.org")', "+1+2", "-1+2", "@SUM(A1)", "[/bold]", "[red]", "\x1b[2J\x1b]0;title\x07",
    "one\ntwo\u2028three", "\u202eevil", "---", "<!-- table:x -->", "=== ", "$x^2$ & 50 % of #1_a {b}", "a | b",
    "\\[x](y)", "\uff1d1+1", "\uff20SUM(A1)",
]  # fmt: skip
TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False, "html": True})


def plain(text: str) -> str:
    """Return a text on one line without what a terminal would obey, by a rule of its own."""
    names = {0x1B: "[U+001B]", 0x07: "[U+0007]", 0x202E: "[U+202E]"}
    return re.sub(r"\s+", " ", text.strip()).translate(names)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_the_characters_and_makes_nothing_of_them(text: str) -> None:
    for around in ("{}", "- {}", "1. {}", "| a |\n| --- |\n| {} |"):
        rendered = MARKDOWN.render(around.format(escape.markdown(text)))
        assert set(re.findall(r"</?(\w+)", rendered)) <= {
            "p",
            "ul",
            "ol",
            "li",
            *["table", "thead", "tbody", "tr", "th", "td"],
        }
        assert plain(text) in html.unescape(re.sub(r"</?\w+[^>]*>", "", rendered))


def test_github_makes_no_formula() -> None:
    assert escape.markdown("$x^2$ for 5 $") == r"\$x^2\$ for 5 \$"


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab1[]()!*_`~<>&;#:|\\-+=. \n\t/"), max_size=24))
def test_no_text_makes_an_element(text: str) -> None:
    rendered = MARKDOWN.render("- " + escape.markdown(text))
    assert re.findall(r"<(\w+)", rendered) == ["ul", "li"]
    assert html.unescape(re.sub(r"</?(ul|li)>", "", rendered)).strip() == plain(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_spreadsheet_computes_nothing(text: str) -> None:
    cell = escape.csv(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff20"))
    assert cell.removeprefix("'") == plain(text)


def test_a_number_in_a_csv_stays_one() -> None:
    assert [escape.csv(text) for text in ("-0.5", "+1", "0.3M", "")] == ["-0.5", "+1", "0.3M", ""]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("50 % of #1_a & {b}", r"50 \% of \#1\_a \& \{b\}"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("$x^2$~", r"\$x\textasciicircum{}2\$\textasciitilde{}"),
        ("é ± 结", r"é $\pm$ [U+7ED3]"),
        ("a\nb\x1b", "a b[U+001B]"),
    ],
)
def test_latex_sets_the_characters(text: str, shown: str) -> None:
    assert escape.latex(text) == shown


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_prints_a_label_and_obeys_nothing(text: str) -> None:
    made = record("lora")
    made["identity"]["method"]["label"] = made["identity"]["task"]["label"] = text
    made["identity"]["model"]["label"] = "[/bold]"
    shown = printed(comparison([made]))
    assert plain(text) in re.sub(r"\s+", " ", shown) or len(text) > 20
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_table_with_such_texts_is_a_table_in_every_format(text: str) -> None:
    line = Line(text, text, (Cell(0.5), Cell(word=text)), source=1, cost=(text,))
    here = Line(text, text, (Cell(0.5, difference=Estimate(0.1, 1)), Cell(0.25)), cost=(text,))
    texts = {
        "reference": text,
        "findings": (text,),
        "notes": (text,),
        "samples": (Samples(text, text, ((text, text),)),),
    }
    block = BlockView(text, ("a", "b"), ("cost",), (line, here), "Legend.", runs_done=1, runs_all=1, **texts)
    view = TableView("x", text, "", (block,), (text,))
    rendered = MARKDOWN.render(formats.markdown(view))
    assert not re.search(r"<(a|img|b|em|strong|code|s|blockquote)\b", rendered)
    assert rendered.count("<table>") == 2  # the differences have their own
    assert "\x1b" not in latex.latex(view)
    rows = list(csv.reader(io.StringIO(formats.tidy_csv(view))))
    assert {len(row) for row in rows} == {len(formats.CSV_COLUMNS)}
    assert not any(re.match(r"[=@]|[+-](?![\d.]+$)", cell) for row in rows for cell in row)
    assert plain(text)[:6] in printed(*formats.on_screen(view))


def printed(*shown: object, width: int = 200) -> str:
    written = io.StringIO()
    Console(file=written, width=width, markup=False, emoji=False, highlight=False).print(*shown, sep="\n")
    return written.getvalue()


@pytest.mark.parametrize("width", [80, 60])
def test_a_table_fits_the_terminal_and_shows_every_number(width: int) -> None:
    subsets = {f"subset_{number}": number / 100 for number in range(11, 21)}
    rows = [record("none", scores=subsets), record("dual_lora", scores={k: v + 0.3 for k, v in subsets.items()})]
    shown = printed(comparison(rows), width=width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    for subset, value in subsets.items():
        assert f"{subset} %" in shown
        assert f"{value * 100 + 30:.1f} (+30.0)" in shown
    assert shown.count("DUAL_LORA") == len(re.findall("^┃ method", shown, re.MULTILINE)) > 1


def test_a_table_that_fits_is_one_table() -> None:
    assert printed(comparison([record("lora")]), width=80).count("┃ method") == 1


def test_a_table_that_fits_is_what_rich_makes_of_its_cells_one_by_one() -> None:
    rows = [["LoRA", Text("44.1", style="bold red"), ""], ["Dual 结果", "9", Text("7").append(" (+1)", style="green")]]
    plain = Table("method", title="scores", title_justify="left")
    for heading in ("one\ntwo", "b"):
        plain.add_column(heading, justify="right")
    for row in rows:
        plain.add_row(*row)
    ours, cell_by_cell = Console(width=60, force_terminal=True), Console(width=60, force_terminal=True)
    with ours.capture() as found, cell_by_cell.capture() as wanted:
        ours.print(FittedTable(["method", "one\ntwo", "b"], rows, "scores"))
        cell_by_cell.print(plain)
    assert found.get() == wanted.get()


def test_columns_wider_than_the_terminal_are_folded() -> None:
    shown = printed(FittedTable(["a", "b"], [["x" * 50, "y" * 50]]), width=40)
    assert shown.count("x") == shown.count("y") == 50
    assert max(map(len, shown.splitlines())) <= 40


def test_a_damaged_label_is_no_error() -> None:
    made = record("lora")
    made["identity"]["method"]["label"] = "\ud800"
    assert "[U+D800]" in printed(comparison([made]))
    assert parse(made).name("method") == "lora"
