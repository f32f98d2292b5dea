"""Runs in processes of their own that can be killed, without the seconds that imports take: forked from a server.

The server has loaded torch and this package and computed nothing, so its children behave like fresh processes.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dual_lora.config import RunConfig
from tests.small_cells import WRITING, config

_FORKS = multiprocessing.get_context("forkserver")


class Child:
    """A process that runs small cells one by one, as `python run.py` does; its log is in `log`."""

    def __init__(self, results: Path, *more: str, kind: list[str] = WRITING, fault: Any = None, cells: int = 1) -> None:
        self.log_path = results.with_name(f"{results.name}.{time.time_ns()}.log")
        chosen = [config(results, f"seed={seed}", *more, kind=kind) for seed in range(cells)]
        self._process = _FORKS.Process(target=_run, args=(chosen, fault, str(self.log_path)))
        self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 900) -> int:
        """Return the exit code; -9 for a process that was killed."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.log}")
        return self._process.exitcode


def run(results: Path, *more: str, kind: list[str] = WRITING, fault: Any = None, cells: int = 1) -> Child:
    """Run to the end and return the child."""
    child = Child(results, *more, kind=kind, fault=fault, cells=cells)
    child.code = child.wait()  # type: ignore[attr-defined]
    return child


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 600) -> Any:
    """Return the first true value of a condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come within {seconds} s")


def _run(chosen: list[RunConfig], fault: Any, log: str) -> None:
    import torch

    torch.set_num_threads(1)
    stream = open(log, "w", buffering=1)  # noqa: SIM115  # the process's output for its whole life
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    sys.stdin = io.StringIO()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=stream)
    from dual_lora.launch import check, local, prepare
    from dual_lora.runs import lifecycle as running

    for cell in chosen:
        check(cell)
    prepared = prepare(chosen)
    if fault is not None:
        fault()
    records = local.one_by_one(prepared)
    sys.exit(max(running.EXIT_CODES.get(made["status"], 1) if made else 3 for made in records))


class At:
    """A fault at the n-th call of a function: `At("torch.save", 2, "kill")`.

    what: kill (before the call), kill_after, kill_halfway (the file that it writes is cut in half), no_space
        (OSError, half of the file written), pause (the file `argument` says so), signal (named by `argument`), value
        (returns `argument` instead), or the name of an exception class with its message.
    """

    def __init__(self, target: str, number: int, what: str, argument: Any = None) -> None:
        self.target, self.number, self.what, self.argument = target, number, what, argument
        self.calls = 0

    def __repr__(self) -> str:
        return f"{self.what} at call {self.number} of {self.target}"

    def __call__(self) -> None:
        owner, name = _owner(self.target)
        original = getattr(owner, name)

        def faulty(*arguments: Any, **keywords: Any) -> Any:
            self.calls += 1
            if self.calls != self.number:
                return original(*arguments, **keywords)
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "signal":
                os.kill(os.getpid(), getattr(signal, self.argument))
                return original(*arguments, **keywords)
            if self.what == "pause":
                Path(self.argument).touch()
                time.sleep(600)
            if self.what in ("kill_after", "kill_halfway", "no_space"):
                result = original(*arguments, **keywords)
                if self.what == "kill_after":
                    os.kill(os.getpid(), signal.SIGKILL)
                _cut(arguments, keywords)
                if self.what == "kill_halfway":
                    os.kill(os.getpid(), signal.SIGKILL)
                del result
                raise OSError(errno.ENOSPC, "No space left on device")
            if self.what == "value":
                return self.argument
            raise _exception(self.what, self.argument)

        setattr(owner, name, faulty)


def _owner(target: str) -> tuple[Any, str]:
    module, _, name = target.rpartition(".")
    try:
        return importlib.import_module(module), name
    except ModuleNotFoundError:
        outer, _, inner = module.rpartition(".")
        return getattr(importlib.import_module(outer), inner), name


def _exception(name: str, argument: Any) -> BaseException:
    import torch

    kinds = {"OutOfMemoryError": torch.cuda.OutOfMemoryError, "MemoryError": MemoryError, "RuntimeError": RuntimeError}
    return kinds[name](argument)


def _cut(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Cut the file that a call has written: an argument that is a path, or an open file."""
    for value in (*arguments, *keywords.values()):
        if isinstance(value, (str, Path)) and Path(value).is_file():
            os.truncate(value, Path(value).stat().st_size // 2)
            return
        if hasattr(value, "truncate") and hasattr(value, "tell"):
            value.flush()
            value.truncate(value.tell() // 2)
            return
