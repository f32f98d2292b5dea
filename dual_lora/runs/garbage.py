"""Python's collector of garbage, kept away from the start of a run: modules, examples and rows stay to its end.

A collection looks through all objects there are, millions of them; it finds nothing there, for a fifth of the start.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect nothing inside, where only what stays is made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
