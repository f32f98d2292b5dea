"""Signals that ask a run to stop. Training finishes its step first (`callbacks.Interruption`); all else stops at once.

SIGUSR2 is what SLURM is asked to send before a time limit.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_asked: list[str] = []


def asked() -> str | None:
    """Return the name of the first signal to stop that arrived during this run, or None."""
    return _asked[0] if _asked else None


def note(number: int) -> None:
    _asked.append(signal.Signals(number).name)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on every signal to stop, so that the run's record says `interrupted`."""
    _asked.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        note(number)
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")

    with handling(interrupt):
        yield


@contextmanager
def handling(handler: Any) -> Iterator[None]:
    """Install a handler for the signals to stop. Outside the main thread whoever started us handles signals."""
    previous: dict[int, Any] = {}
    try:
        for number in NUMBERS:
            try:
                previous[number] = signal.signal(number, handler)
            except ValueError:
                break
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
