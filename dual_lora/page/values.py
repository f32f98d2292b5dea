"""Plain values for the page: text that is only text, numbers of few digits, and things that many runs share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dual_lora.report import escape

DIGITS = 6
_KEY = json.JSONEncoder(sort_keys=True, check_circular=False).encode
_NOTHING: tuple[Any, ...] = ("", [], {}, ())


@dataclass
class Pool:
    """Values that several runs share, each kept once; a run holds their places."""

    held: list[Any] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)
    _parts: dict[tuple[str, int], tuple[Any, int]] = field(default_factory=dict)

    def place(self, value: Any) -> int:
        """Return the place of a value in `held`."""
        key = _KEY(value)
        if key not in self._places:
            self._places[key] = len(self.held)
            self.held.append(value)
        return self._places[key]

    def place_of(self, part: str, value: Any, show: Callable[[str, Any], Any]) -> int:
        """Return the place of `show(part, value)`, made once for an object that many runs share."""
        key = (part, id(value))
        if key not in self._parts:
            self._parts[key] = value, self.place(show(part, value))  # the object too, so that no other gets its id
        return self._parts[key][1]


def plain(value: Any, digits: int = DIGITS) -> Any:
    """Return JSON values as the page shows them: each text on one line, its control characters by their codes.

    Numbers are rounded to `digits` digits, so that the last bits of a machine's arithmetic change no page.
    """
    kind = type(value)
    if kind is str:
        return _text(value)
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return number(value, digits)
    if kind is dict:
        return {_text(str(key)): plain(item, digits) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [plain(item, digits) for item in value]
    return _text(str(value))


def without_blanks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that say something: zero does, None, no and nothing do not."""
    return {
        key: value
        for key, value in values.items()
        if value is not None and value is not False and value not in _NOTHING
    }


@functools.cache
def _text(text: str) -> str:
    return escape.terminal(text)


def number(value: float | None, digits: int = DIGITS) -> float | int | None:
    """Return a number of few digits; whole ones as integers, which are shorter."""
    if value is None:
        return None
    rounded = float(format(value, f".{digits}g"))
    return int(rounded) if rounded.is_integer() and abs(rounded) < 10**15 else rounded
