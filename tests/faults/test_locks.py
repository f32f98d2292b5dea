"""Two shells that start the same run: one works, the other says who does. A lock of the dead is taken over."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dual_lora.records.lock import STALE_SECONDS, RunIsBusy, RunLock
from tests.faults.children import At, Child, run, wait_for
from tests.small_cells import only_record


def leave_lock(folder: Path, **values: object) -> Path:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": "2026-01-01T00:00:00+0000",
        "process_started": psutil.Process().create_time(),
    }
    path = folder / "lock.json"
    path.write_text(json.dumps(holder | values))
    return path


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_second_shell_says_who_works_on_the_run(tmp_path):
    results, mark = tmp_path / "results", tmp_path / "in the middle"
    first = Child(results, fault=At("dual_lora.training.trainer._Trainer.training_step", 3, "pause", mark))
    wait_for(mark.exists, "the middle of training")
    try:
        second = run(results)
        assert second.code == 3
        assert f"process {first.pid} on {socket.gethostname()} has been working on this run since 2" in second.log
        assert first.alive
    finally:
        first.kill()
    third = run(results)  # the first is dead, so its lock is stale
    assert third.code == 0, third.log
    assert only_record(results)["status"] == "finished"


def test_lock_is_released(tmp_path):
    with RunLock(tmp_path):
        assert (tmp_path / "lock.json").exists()
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_dead_process_is_taken_over(tmp_path):
    leave_lock(tmp_path, pid=dead_process())
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def test_reused_process_id_is_no_holder(tmp_path):
    """The process id lives, but its process began at another time than the lock's."""
    leave_lock(tmp_path, process_started=psutil.Process().create_time() - 1000)
    with RunLock(tmp_path):
        pass


def test_living_process_keeps_its_lock(tmp_path):
    leave_lock(tmp_path)
    with (
        pytest.raises(
            RunIsBusy, match=f"process {os.getpid()} on {socket.gethostname()} has been working on this run since 2026"
        ),
        RunLock(tmp_path),
    ):
        pass
    assert (tmp_path / "lock.json").exists()


def test_fresh_lock_of_another_host_is_respected(tmp_path):
    leave_lock(tmp_path, host="node17", pid=1)
    with pytest.raises(RunIsBusy, match="node17"), RunLock(tmp_path):
        pass


def test_silent_lock_of_another_host_is_taken_over(tmp_path):
    """Another host cannot be asked whether a process lives; its heartbeat is the file's time."""
    path = leave_lock(tmp_path, host="node17", pid=1)
    old = time.time() - STALE_SECONDS - 60
    os.utime(path, (old, old))
    with RunLock(tmp_path):
        pass


def test_heartbeat_keeps_a_lock_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr("dual_lora.records.lock.HEARTBEAT_SECONDS", 0.05)
    with RunLock(tmp_path):
        path = tmp_path / "lock.json"
        os.utime(path, (0, 0))
        wait_for(lambda: time.time() - path.stat().st_mtime < 60, "a heartbeat", 30)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_unreadable_lock_is_taken_over(text, tmp_path):
    """Such a file was not made by a lock, which appears under its name only when it is whole."""
    (tmp_path / "lock.json").write_text(text)
    with RunLock(tmp_path):
        pass


CROWD = 6


def _compete(folder: Path, start: Any, won: Any, refused: Any) -> None:
    start.wait()
    try:
        with RunLock(folder):
            won.put(os.getpid())
            all(refused.acquire(timeout=10) for _ in range(CROWD - 1))
    except RunIsBusy:
        refused.release()


def test_one_of_many_takes_a_stale_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    leave_lock(tmp_path, pid=dead_process())
    start, won, refused = context.Event(), context.Queue(), context.Semaphore(0)
    crowd = [context.Process(target=_compete, args=(tmp_path, start, won, refused)) for _ in range(CROWD)]
    for process in crowd:
        process.start()
    start.set()
    for process in crowd:
        process.join()
    winners = [won.get(timeout=5)]
    assert won.empty()
    assert len(winners) == 1


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def no_hard_links(request, monkeypatch):
    """A cloud mount, exFAT or SMB: link(2) fails, all else works."""

    def refuse(source, target, **_):
        raise OSError(request.param, os.strerror(request.param), str(source), None, str(target))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("no_hard_links")
def test_a_folder_without_hard_links_has_locks_too(tmp_path):
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
        with pytest.raises(RunIsBusy, match=f"process {os.getpid()} on"), RunLock(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    leave_lock(tmp_path, pid=dead_process())
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def test_without_hard_links_a_lock_that_is_being_written_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("dual_lora.records.lock._WRITING_SECONDS", 0.3)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    path = tmp_path / "lock.json"
    path.write_text("")
    begun = path.stat().st_mtime
    with RunLock(tmp_path):
        assert time.time() - begun >= 0.3


def test_without_hard_links_one_of_many_takes_a_stale_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    test_one_of_many_takes_a_stale_lock(tmp_path)


def test_another_error_of_the_file_system_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "input/output error")))
    with pytest.raises(OSError, match="input/output error"), RunLock(tmp_path):
        pass
