"""One process works on a run at a time, also on a network file system.

The lock is a file made with `os.link`, which is atomic on NFS too (flock is not relied on). It names its holder. Where
there are no hard links (cloud mounts, exFAT, SMB) it is made by exclusive creation, and is whole a moment later.
A lock is stale if its process has ended (same host) or if its heartbeat, the file's modification time, is old (another
host). Process ids are re-used, so the start time of the process is compared as well.

filelock's `SoftFileLease` (4.2.12) fails two of tests/faults/test_locks.py: it takes over another host's lock only
after it has itself watched it stay silent for all of `STALE_SECONDS`, and an empty lock file never.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

HEARTBEAT_SECONDS = 20.0
# Another host's lock is abandoned after this long without a heartbeat. Clocks of hosts may differ by minutes.
STALE_SECONDS = 600.0
_TAKEOVER_SECONDS = 120.0
_WRITING_SECONDS = 3.0  # without hard links, a lock that cannot be read and is younger is still being written
_NO_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK))
_TRIES = 100


class RunIsBusy(RuntimeError):
    """Another process works on this run; the message says which, where and since when."""


class RunLock:
    """Context manager that holds `<folder>/lock.json`. Raises `RunIsBusy`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock.json"
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None
        self._links = True

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = self.path.with_name(f"lock.{socket.gethostname()}.{os.getpid()}.tmp")
        mine.write_text(
            json.dumps(
                {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                    "process_started": psutil.Process().create_time(),
                }
            ),
            encoding="utf-8",
        )
        try:
            for _ in range(_TRIES):  # another process may remove a stale lock between our check and our attempt
                try:
                    self._name(mine, self.path)
                    break
                except FileExistsError:
                    self._remove_if_stale(mine)
            else:
                raise RunIsBusy(f"several processes are taking over {self.path}; try again in a moment")
        finally:
            mine.unlink(missing_ok=True)
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self.path.unlink(missing_ok=True)

    def _name(self, mine: Path, name: Path) -> None:
        """Let this process's lock file have a name too. Raises `FileExistsError` if another process has it."""
        if self._links:
            try:
                os.link(mine, name)
                return
            except FileExistsError:
                raise
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._links = False
        with name.open("x", encoding="utf-8") as file:
            file.write(mine.read_text(encoding="utf-8"))

    def _keep_alive(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.path)
            except OSError:
                return

    def _remove_if_stale(self, mine: Path) -> None:
        try:
            text, age = self.path.read_text(encoding="utf-8"), time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        try:
            holder = json.loads(text)
            pid, host, started = int(holder["pid"]), str(holder["host"]), float(holder["process_started"])
        except (ValueError, KeyError, TypeError):
            if not self._links and age < _WRITING_SECONDS:
                time.sleep(0.05)
                return
            holder, pid, host, started = {}, -1, "", 0.0
        # A link appears complete, so one that cannot be read was left by a crash of the machine.
        local = host in (socket.gethostname(), "")
        alive = _is_running(pid, started) if local else age < STALE_SECONDS
        if alive:
            raise RunIsBusy(
                f"process {pid} on {host} has been working on this run since {holder.get('since')}; "
                f"wait for it, or stop it and run the same command again ({self.path})"
            )
        # One of several finders removes it, and only the lock it has read: never the fresh lock of a faster one.
        guard = self.path.with_name("lock.takeover")
        try:
            self._name(mine, guard)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - guard.stat().st_mtime > _TAKEOVER_SECONDS:
                    guard.unlink()  # its owner died within the few lines below
            time.sleep(0.05)
            return
        try:
            if self.path.read_text(encoding="utf-8") == text:
                self.path.unlink()
        except FileNotFoundError:
            pass
        finally:
            guard.unlink(missing_ok=True)


def _is_running(pid: int, started: float) -> bool:
    if pid < 0:
        return False
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
