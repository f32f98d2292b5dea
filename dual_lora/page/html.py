"""One HTML file that needs nothing else: styles, scripts and all values are inside it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_lora.page import content
from dual_lora.records.schema import Record
from dual_lora.report.layout import TableView
from dual_lora.report.workspace import Workspace

STATIC = Path(__file__).parent / "static"
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False).encode
_PACKED = re.compile(r'^("[^"]*":)"(e[A-Za-z0-9+/]+=*)"', re.MULTILINE)  # e: of zlib's first byte
LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
SCRIPTS = (
    "values.js",
    "dom.js",
    "charts.js",
    "tables.js",
    "details.js",
    "runs.js",
    "one_run.js",
    "two_runs.js",
    "figures.js",
    "cost_figures.js",
    "study_figures.js",
    "overview.js",
    "main.js",
)


def document(
    space: Workspace, views: Mapping[str, TableView], held: Sequence[Record], refused: Sequence[str] = ()
) -> str:
    """Return the page over these tables and records; `refused` says of other files why they are not shown."""
    return _filled(content.gather(space, views, held, refused))


def _filled(values: Mapping[str, Any]) -> str:
    """Return the template with its parts. Nothing in `values` can end the element it is in, or be run."""
    scripts = [_read(name) for name in LIBRARIES]
    scripts.append('"use strict";\n(async () => {\n' + "\n".join(_read(name) for name in SCRIPTS) + "\n})();\n")
    parts = {
        "policy": " ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        "style": _read("page.css"),
        "values": island(values),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    page = _read("page.html")
    pieces = page.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def island(values: Mapping[str, Any]) -> str:
    """Return values as JSON that HTML takes for text: a table or the packed runs of a sweep a line, no "<" in it."""
    lines = []
    for name, value in values.items():
        if name == "sweeps":
            body = "{\n" + ",\n".join(f"{_json(sweep)}:{_packed(runs)}" for sweep, runs in value.items()) + "\n}"
        elif name in ("tables", "verdicts"):
            body = "[\n" + ",\n".join(_json(entry) for entry in value) + "\n]"
        else:
            body = _json(value)
        lines.append(f"{_json(name)}:{body}")
    return "{\n" + ",\n".join(lines) + "\n}"


def _packed(runs: Mapping[str, Any]) -> str:
    """Return the runs of a sweep as text of a fourth of the size, which static/values.js reads."""
    return f'"{base64.b64encode(zlib.compress(_json(runs).encode(), 9)).decode()}"'


def same(one: str, other: str) -> bool:
    """Whether two pages say the same: another build of zlib may pack it in other bytes."""
    try:
        return one == other or unpacked(one) == unpacked(other)
    except (ValueError, zlib.error):  # a page that is damaged
        return False


def unpacked(page: str) -> str:
    """Return a page with its runs as JSON. Raises `ValueError` or `zlib.error` for one that is damaged."""
    return _PACKED.sub(lambda found: found[1] + zlib.decompress(base64.b64decode(found[2])).decode(), page)


def _json(value: Any) -> str:
    return _ENCODE(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _read(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
