"""Signals that ask a run to stop. Training finishes its step first (`Interruption`); all else stops at once.

SIGUSR2 is what SLURM is asked to send before a time limit.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dual_lora.distributed import processes, watchdog

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_asked: list[str] = []


class Interrupted(RuntimeError):
    """A signal asked the run to stop; a checkpoint was written."""


def asked() -> str | None:
    """Return the name of the first signal to stop that arrived during this run, or None."""
    return _asked[0] if _asked else None


def note(number: int) -> None:
    _asked.append(signal.Signals(number).name)


def repeats(number: int) -> bool:
    """Return whether this signal says nothing new: SLURM and a group's parent both tell every process.

    Only a person who presses Ctrl-C again wants more than before.
    """
    return bool(_asked) and number != signal.SIGINT


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on every signal to stop, so that the run's record says `interrupted`."""
    _asked.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if repeats(number):
            return
        note(number)
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")

    with handling(interrupt):
        yield


@contextmanager
def held() -> Iterator[None]:
    """Let signals to stop wait for what is done inside, as the writing of a record. Those that repeat are dropped."""
    late: list[int] = []
    try:
        with handling(lambda number, frame: late.append(number)):
            yield
    finally:
        for number in late:
            if not repeats(number):
                signal.raise_signal(number)


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
        for kept, before in previous.items():
            signal.signal(kept, before)


class Interruption(TrainerCallback):
    """A signal to stop finishes the step, writes a checkpoint and stops; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._handlers = handling(self._note)

    def __enter__(self) -> Interruption:
        self._handlers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handlers.__exit__(None, None, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:  # two that arrive at once may both be here, one inside the other: they are one
            note(number)
            self.signal = signal.Signals(number).name
        elif not repeats(number):
            raise KeyboardInterrupt(f"stopped by a second {signal.Signals(number).name}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        # One process may be signalled a step before the others; all must stop at the same one, and know what for: the
        # signal of their own that follows says nothing new, and must not end the writing of the record.
        number = processes.largest(signal.Signals[self.signal] if self.signal else 0)
        if number and self.signal is None:
            self._note(number, None)
        if number and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control


class Alive(TrainerCallback):
    """Tells the parent of a group that this process goes on: `distributed.watchdog`."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        watchdog.progress()

    on_substep_end = on_prediction_step = on_evaluate = on_save = on_step_end

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        watchdog.rest()
