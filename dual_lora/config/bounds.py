"""What a number in the settings may be: types that pydantic checks, and their legal range in words.

Whole numbers and fractions are taken as such: `true`, "3" or 2.5 is no count. None may be NaN or infinite.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.fields import FieldInfo

MAX_SEED = 2**32 - 1  # numpy's
MOST = 2**31 - 1  # more is no count of anything here, and overflows somewhere below
LARGEST = 3e38  # steps are computed in float32
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(ge=0, le=MOST, strict=True)]
Positive = Annotated[int, Field(ge=1, le=MOST, strict=True)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)]
Exponent = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False, strict=True)]  # of a length; 4096³⁰⁰ overflows
NotNegative = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False, strict=True)]
Epochs = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False, strict=True)]
AboveZero = Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, strict=True)]  # neither none nor all

_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def legal_range(annotation: Any) -> str | None:
    """Return what a setting of this type may be, e.g. "a whole number, at least 1, or null".

    None for a type without bounds.
    """
    parts = typing.get_args(annotation)
    for part in (annotation, *parts):
        for note in getattr(part, "__metadata__", ()):
            if isinstance(note, FieldInfo):
                kind = "a whole number" if typing.get_args(part)[0] is int else "a finite number"
                limits = [
                    f"{word} {getattr(limit, name)}"
                    for limit in note.metadata
                    for name, word in _WORDS.items()
                    if hasattr(limit, name)
                ]
                words = [f"or {word}" for other in parts for word in typing.get_args(other) if isinstance(word, str)]
                words += ["or null"] if type(None) in parts else []
                return ", ".join(filter(None, (kind, " and ".join(limits), *words)))
    return None


def not_finite(values: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers that are NaN or infinite with the names of their settings, also in what PEFT will check."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            # A method's PEFT settings are given at the level of its own.
            yield from not_finite(value, name if key == "settings" else f"{name}.{key}".lstrip("."))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from not_finite(value, name)
    elif isinstance(values, float) and not math.isfinite(values):
        yield name, values
