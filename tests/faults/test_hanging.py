"""A process that does not respond is named, with its place and those that wait for it; one at work is let be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

from dual_lora.distributed import watchdog
from dual_lora.launch import group
from tests.faults.children import wait_for


def test_a_process_that_is_stopped_is_named_as_unresponsive(tmp_path, monkeypatch):
    """Not as one that ran out of memory: the kernel's out-of-memory killer ends a process, and does not stop it."""
    start = tmp_path / "start.json"
    command = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)", str(start)]
    with subprocess.Popen(command, env={**os.environ, "RANK": "1"}, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        here = group.Group(start, None)
        here.end_stopped()
        child.send_signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED, "the stop")
        here.end_stopped()
        assert here.first_failure() is None, "it may go on within a minute"
        child.send_signal(signal.SIGCONT)
        wait_for(lambda: psutil.Process(child.pid).status() != psutil.STATUS_STOPPED, "the return")
        here.end_stopped()
        monkeypatch.setattr(group, "STOPPED_SECONDS", 0.05)
        child.send_signal(signal.SIGSTOP)
        wait_for(lambda: here.end_stopped() or here.first_failure(), "the end")
        assert child.wait(60) == -signal.SIGKILL
    said = here.first_failure()
    assert said["status"] == "interrupted"
    assert said["message"].startswith(f"rank 1 does not respond: its process {child.pid} has been stopped (SIGSTOP)")
    assert "memory" not in said["message"]


HANGING = """
import os, sys, threading
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from dual_lora.distributed import watchdog
watchdog.SILENT_SECONDS = 0.3
watchdog.watch(Path(sys.argv[1]).with_suffix(".stacks"), int(os.environ["RANK"]))
watchdog.progress()
lock = threading.Lock()
lock.acquire()
names = {{"lock": lock}}
code = "def {function}(): lock.acquire()"
exec(compile(code, "{file}", "exec"), names)
print(1, flush=True)
names["{function}"]()
"""


def test_a_process_that_hangs_is_named_with_its_place_and_who_waits_for_it(tmp_path):
    start = tmp_path / "start.json"
    places = [("site/torch/distributed/distributed_c10d.py", "all_reduce"), ("mine/reader.py", "read_block")]
    places += [places[0]]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", HANGING.format(file=file, function=function), str(start)],
            env={**os.environ, "RANK": str(rank)},
        )
        for rank, (file, function) in enumerate(places)
    ]
    here = group.Group(start, None)
    wait_for(lambda: here.end_silent() or here.first_failure(), "the end")
    assert [child.wait(60) for child in children] == [-signal.SIGKILL] * 3
    said = here.first_failure()
    assert (said["rank"], said["status"]) == (1, "interrupted")
    assert said["message"].startswith(
        "rank 1 does not respond: it is in read_block (reader.py:1); waiting for it: rank 0, 2, for "
    )
    assert "read_block" in said["trace"]


def test_a_process_that_goes_on_or_waits_for_others_is_let_be(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "SILENT_SECONDS", 0.4)
    watchdog.watch(tmp_path, 0)
    for _ in range(10):
        watchdog.progress()
        time.sleep(0.1)
    watchdog.rest()
    time.sleep(0.8)
    assert watchdog.told(tmp_path) == {}
    watchdog.progress()
    wait_for(lambda: watchdog.told(tmp_path), "the stack")
    assert "test_a_process_that_goes_on" in watchdog.told(tmp_path)[0]
    monkeypatch.setattr(watchdog, "_file", None)
