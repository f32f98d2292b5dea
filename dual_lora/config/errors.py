"""The errors a user can fix, and the words that help: what is wrong, what is legal, what is nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the value, the legal values and the fix."""


class ModelError(ConfigError):
    """A base model that cannot be used; the message names what is wrong and what to do."""


class DataError(ValueError):
    """Data that cannot be used; the message names file, line or item, field and the fix."""


def closest(word: object, legal: Iterable[str]) -> str | None:
    """Return the closest legal word, in whatever case it is written; None if all are far."""
    by_letters = {one.lower(): one for one in legal}
    close = difflib.get_close_matches(str(word).lower(), list(by_letters), n=1, cutoff=0.5)
    return by_letters[close[0]] if close else None


def nearest(word: object, legal: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" for the closest legal word, or an empty string."""
    close = closest(word, legal)
    return "" if close is None else f"; did you mean {close!r}?"


def legal_values(word: object, legal: Iterable[str]) -> str:
    """Return the end of an error message: "; did you mean 'X'? Legal: X, Y, Z", or ". Legal: X, Y, Z"."""
    legal = list(legal)
    return f"{nearest(word, legal) or '.'} Legal: {', '.join(legal)}"
