"""A process of a group that makes no more progress writes where it is, for the parent to say which one it is.

A process that hangs (a deadlock, a file system that does not answer) leaves the others in a collective operation for an
hour (`processes.PATIENCE`), and none of them knows which one they wait for. Python's `faulthandler` writes the stack of
a process from a thread of its own that needs no lock of the interpreter.
"""

from __future__ import annotations

import faulthandler
import re
import time
from pathlib import Path
from typing import TextIO

# The longest that a step of training, a batch of evaluation or the writing of a checkpoint may take.
SILENT_SECONDS = 30 * 60.0
_EVERY = 1.0  # seconds; setting the alarm anew starts a thread
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)')
# A collective operation, a call of DDP, or a backward pass, in which its hooks wait.
_WAITS = ("torch/distributed/", "torch/nn/parallel/", "torch/autograd/graph.py")

_file: TextIO | None = None
_set = 0.0


def watch(folder: Path, rank: int) -> None:
    """From the first `progress` on, write this process's stack to a file in `folder` once it is silent for long."""
    global _file
    folder.mkdir(parents=True, exist_ok=True)
    _file = (folder / f"rank-{rank}.txt").open("w", encoding="utf-8")


def progress() -> None:
    """Say that a step or a batch is done. Without `watch`, or within a second of the last time, it does nothing."""
    global _set
    now = time.monotonic()
    if _file is not None and now - _set > min(_EVERY, SILENT_SECONDS / 10):
        faulthandler.dump_traceback_later(SILENT_SECONDS, file=_file)
        _set = now


def rest() -> None:
    """Say that what comes now may take any time (loading, waiting for others), until the next `progress`."""
    global _set
    if _file is not None:
        faulthandler.cancel_dump_traceback_later()
        _set = 0.0


def told(folder: Path) -> dict[int, str]:
    """Return the stack of each process that has written one, by rank."""
    files = sorted(folder.glob("rank-*.txt"))
    found = {int(file.stem.rpartition("-")[2]): file.read_text(encoding="utf-8", errors="replace") for file in files}
    return {rank: text for rank, text in found.items() if text.rstrip()}


def blame(stacks: dict[int, str]) -> tuple[int, str]:
    """Return the rank that the others wait for, and what to say: where it is, and who waits for it.

    Where all wait in collective operations, or none does, it is the first, and each is told with its place.
    """
    places = {rank: _places(text) for rank, text in stacks.items()}
    waiting = [
        rank for rank, frames in places.items() if any(part in file for file, _, _ in frames[:8] for part in _WAITS)
    ]
    apart = [rank for rank in places if rank not in waiting]
    named = apart if apart and (waiting or len(places) == 1) else sorted(places)
    said = "; ".join(f"rank {rank} does not respond: it is {_where(places[rank])}" for rank in named)
    others = [rank for rank in waiting if rank not in named]
    if others:
        said += f"; waiting for it: rank {', '.join(map(str, others))}"
    return named[0], said


def _places(stack: str) -> list[tuple[str, int, str]]:
    """Return file, line and function of the main thread's frames, innermost first: it is the last that is written."""
    frames = stack.rpartition("Thread 0x")[2]
    return [(found["file"], int(found["line"]), found["function"]) for found in _FRAME.finditer(frames)]


def _where(frames: list[tuple[str, int, str]]) -> str:
    own = next((frame for frame in frames if "/dual_lora/" in frame[0]), None)
    shown = [frame for frame in dict.fromkeys((frames[0] if frames else None, own)) if frame is not None]
    words = [f"in {function} ({Path(file).name}:{line})" for file, line, function in shown]
    return ", called from ".join(words) or "at an unknown place"
