"""A full disk at any write outside a checkpoint: one line that names folder and space, and the same run afterwards.

`test_checkpoints.py` has the writes of a checkpoint.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest

from dual_lora import commands
from dual_lora.launch import local, prepare
from dual_lora.records import disk
from tests.small_cells import CLASSIFYING, config, numbers, only_record


def run(results: Path) -> list[dict | None]:
    cell = config(results, kind=CLASSIFYING)
    return local.one_by_one(prepare([dataclasses.replace(cell, retry=True)]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    [made] = run(tmp_path_factory.mktemp("whole"))
    assert made["status"] == "finished"
    return made


def full_from(monkeypatch, call: int) -> list[int]:
    """Let every write that is to be safe from a crash fail from the n-th on; return the calls so far."""
    calls: list[int] = []
    real = os.fsync

    def fsync(file):
        calls.append(1)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr("os.fsync", fsync)
    return calls


@pytest.mark.parametrize("call", [1, 2, 4, 7])
def test_a_disk_that_fills_up_is_said_in_one_line_and_the_run_goes_on_later(call, whole, tmp_path, monkeypatch, caplog):
    """At the config, the training text, a checkpoint's losses or manifest; there is no room for the record either."""
    results = tmp_path / "results"
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        calls = full_from(patch, call)
        [made] = run(results)
        assert len(calls) >= call
    assert made is None
    [said] = [line for line in caplog.messages if "error: " in line]
    assert said.startswith(f"error: No space left on device: {results}/runs/")
    assert "MiB free" in said
    assert "There was no room for a record" in said
    assert "Traceback" not in caplog.text
    assert not list((results / "records").glob("*"))
    [again] = run(results)
    assert numbers(again) == numbers(whole)


def test_a_record_that_fits_says_what_the_disk_lacked(tmp_path, monkeypatch, caplog):
    import numpy

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(numpy, "savez", full)
        run(tmp_path / "results")
    made = only_record(tmp_path / "results")
    assert made["status"] == "failed"
    assert made["message"].startswith(f"No space left on device: {tmp_path / 'results' / 'runs'}")
    assert "Traceback" not in caplog.text
    assert not list(tmp_path.glob("results/runs/*/error.txt"))


def test_a_full_disk_is_told_from_other_errors(tmp_path, monkeypatch):
    absent = tmp_path / "not" / "there" / "file"
    full = OSError(errno.ENOSPC, "No space left on device", str(absent))
    assert str(disk.shortage(full, Path("/"))).startswith(f"No space left on device: {tmp_path} has ")
    assert disk.shortage(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path)
    wrapped = RuntimeError("the library's own")
    wrapped.__cause__ = full
    assert disk.shortage(wrapped, tmp_path)
    words = RuntimeError("SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)")
    assert disk.shortage(words, tmp_path)
    written = RuntimeError("PytorchStreamWriter failed writing file")  # torch says no more
    for other in (OSError(errno.EACCES, "no"), written, ValueError("x")):
        assert disk.shortage(other, tmp_path) is None
    usage = type("Usage", (), {"free": 4096})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert "has 0 MiB free" in str(disk.shortage(written, tmp_path))
    assert disk.shortage(ValueError("x"), tmp_path) is None


def test_a_command_ends_with_that_line(monkeypatch, capsys, tmp_path):
    def full(words):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "start.json"))

    monkeypatch.setattr("dual_lora.commands.run.main", full)
    assert commands.main(["model=tiny_llama"]) == 1
    assert capsys.readouterr().err.startswith(f"error: No space left on device: {tmp_path} has ")
