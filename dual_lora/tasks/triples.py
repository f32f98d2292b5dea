"""Inputs that are sets of (subject, property, object), linearised as in the LoRA release: "s : p : o | s : p : o"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def linearise(triples: Iterable[Sequence[str]]) -> str:
    """Return the triples as one line. Raises `ValueError` for none, or one without three non-empty texts."""
    parts = []
    for triple in triples:
        if len(triple) != 3 or not all(isinstance(part, str) and part.strip() for part in triple):
            raise ValueError(f"malformed triple {list(triple)!r:.100}: a subject, a property and an object are needed")
        parts.append(" : ".join(" ".join(part.split()) for part in triple))
    if not parts:
        raise ValueError("no triples")
    return " | ".join(parts)


def split_triple(text: str) -> list[str]:
    """Return the parts of "subject | property | object", as WebNLG's and DART's XML write a triple."""
    return [part.strip() for part in text.split(" | ")]
