"""Text from elsewhere (labels, notes, sources, replies) as each format shows it: its characters and nothing else.

One function for each format. In all of them a control or direction character is shown by its code, so that no text
moves a cursor, ends a line or turns the reading order.
"""

from __future__ import annotations

import re
import unicodedata

# Markdown reads these anywhere; GitHub's reads formulas between dollar signs. An underscore within a word is a letter,
# and an ampersand is one unless it begins an entity. A word that begins a list, a heading or a rule does so at the
# start of a text only.
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|<|^>|&(?=#?\w+;)")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_MARKDOWN_START = re.compile(r"(\d*)([#+=.)-])(?=\s|[#=-]|$)")
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "σ": r"$\sigma$",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "Δ": r"$\Delta$",
    "₁": r"$_1$",
    "₂": r"$_2$",
    "−": r"$-$",
    "–": "--",
    "†": r"\textdagger{}",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
}
_LATIN = 0x17F  # what pdfLaTeX sets with its usual fonts
# A spreadsheet computes a cell that begins so; the wide ones in East Asian settings.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # the reading order


def markdown(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    line = _MARKDOWN.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), terminal(text))
    return _MARKDOWN_START.sub(r"\1\\\2", line, count=1) if _MARKDOWN_START.match(line) else line


def latex(text: str) -> str:
    """Return text that LaTeX sets as it is; a character that its usual fonts lack is shown by its code."""
    return "".join(_LATEX.get(c) or (c if ord(c) <= _LATIN else _code(c)) for c in terminal(text))


def csv(text: str) -> str:
    """Return text that a spreadsheet shows and does not compute: what begins like a formula gets an apostrophe."""
    shown = terminal(text)
    return f"'{shown}" if shown.startswith(_FORMULA) and not _is_number(shown) else shown


def terminal(text: str) -> str:
    """Return text on one line that a terminal prints and does not obey."""
    line = " ".join(text.split())
    if line.isascii() and line.isprintable():  # most are: twenty times as fast as letter by letter
        return line
    return "".join(_code(c) if _obeyed(c) else c for c in line)


def _obeyed(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in _TURNS


def _code(character: str) -> str:
    return f"[U+{ord(character):04X}]"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
