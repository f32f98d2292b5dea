"""A link between this repository's pages leads to a file, and to a heading of it where it names one."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from tests import ROOT

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)


def text(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of `page`; one that comes again gets -1, -2, …"""
    bare = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in HEADING.findall(text(page))]
    names = [re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in bare]
    return {name + (f"-{before}" if (before := names[:at].count(name)) else "") for at, name in enumerate(names)}


def dead(page: Path) -> list[str]:
    links = [link for link in LINK.findall(QUOTED.sub("", text(page))) if not re.match(r"[a-z]+:", link)]
    return [link for link in links if not leads(page, *link.partition("#")[::2])]


def leads(page: Path, path: str, anchor: str) -> bool:
    target = page.parent / path if path else page
    return target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors(target))


def test_each_link_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(page for folder in ("docs", "results") for page in (ROOT / folder).rglob("*.md"))]
    assert len(pages) > 80
    assert {page.relative_to(ROOT).as_posix(): links for page in pages if (links := dead(page))} == {}


def test_a_dead_link_is_found(tmp_path) -> None:
    headings = "# Rate, σ and `width`\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n"
    (tmp_path / "b.md").write_text(headings, encoding="utf-8")
    good = "[x](b.md) [x](b.md#rate-σ-and-width) [x](b.md#twice-1) [x](#here) [x](https://a.org/#y) `[x](code.md)`"
    bad = "[x](c.md) [x](b.md#twice-2) [x](b.md#no-heading) [x](#there)"
    (tmp_path / "a.md").write_text(f"# Here\n\n{good}\n{bad}\n", encoding="utf-8")
    assert dead(tmp_path / "a.md") == ["c.md", "b.md#twice-2", "b.md#no-heading", "#there"]
