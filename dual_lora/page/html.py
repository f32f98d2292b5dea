"""One HTML file that needs nothing else: styles, scripts and all values are inside it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_lora.page import content
from dual_lora.records.schema import Record
from dual_lora.report.layout import TableView
from dual_lora.report.workspace import Workspace

STATIC = Path(__file__).parent / "static"
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False).encode
LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
SCRIPTS = (
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
    scripts.append('"use strict";\n(() => {\n' + "\n".join(_read(name) for name in SCRIPTS) + "\n})();\n")
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
    """Return values as JSON that HTML takes for text: a run or a table a line, no "<" in it."""
    lines = []
    for name, value in values.items():
        entries = value.items() if name == "runs" else value if name in ("tables", "pool", "verdicts") else None
        if entries is None:
            body = _json(value)
        elif name == "runs":
            body = "{\n" + ",\n".join(f"{_json(key)}:{_json(entry)}" for key, entry in entries) + "\n}"
        else:
            body = "[\n" + ",\n".join(_json(entry) for entry in entries) + "\n]"
        lines.append(f"{_json(name)}:{body}")
    return "{\n" + ",\n".join(lines) + "\n}"


def _json(value: Any) -> str:
    return _ENCODE(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _read(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
