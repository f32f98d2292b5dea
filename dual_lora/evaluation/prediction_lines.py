"""The lines of a file of kept predictions, one JSON object each."""

from __future__ import annotations

from pathlib import Path


def read_lines(path: Path) -> list[str]:
    """Return the lines of a predictions file, including an unfinished last one. Raises `OSError`.

    `str.splitlines` would also split where a reply holds U+0085, U+2028 or U+2029, which JSON leaves as they are.
    """
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.stat().st_size else []
