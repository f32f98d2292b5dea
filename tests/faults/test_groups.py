"""A group of processes lives and dies together, and the record names the one that failed first."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from dual_lora.distributed import processes, watchdog
from dual_lora.launch import group, launch, local, prepare, worker
from dual_lora.launch.local import write_config
from dual_lora.runs import lifecycle
from tests.faults.children import wait_for
from tests.forked_groups import fork_groups
from tests.small_cells import CLASSIFYING, config, only_record

TWO = ("launch=torchrun", "launch.num_gpus=2", "launch.per_device_batch=4")
LONG = ("profile.max_steps=2000", "recipe.epochs=1000", "launch.save_every_steps=100000")
# Read by Python as it starts, before anything of ours: the fault is in the test, not in the program.
FAULT = """
import os
if os.environ.get("RANK") == "1":
    import threading, time, sys
    def act():
        while "dual_lora.training.trainer" not in sys.modules: time.sleep(0.05)
        from dual_lora.training.trainer import _Trainer
        step = _Trainer.training_step
        def faulty(self, *arguments, **keywords):
            if self.state.global_step >= 2: {action}
            return step(self, *arguments, **keywords)
        _Trainer.training_step = faulty
    threading.Thread(target=act, daemon=True).start()
"""


def inject(folder: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """Make the second process of groups that are started as commands do something in its third step."""
    (folder / "sitecustomize.py").write_text(FAULT.format(action=action))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def test_killed_process_takes_the_group_down_and_the_run_continues(tmp_path, monkeypatch, caplog, capfd):
    inject(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")
    begun = time.monotonic()
    assert launch([config(tmp_path / "results", *TWO, kind=CLASSIFYING)]) == 130
    record = only_record(tmp_path / "results")
    assert record["status"] == "interrupted"
    assert "rank 1 was ended by SIGKILL" in record["message"]
    assert "rank 1 was ended by SIGKILL" in next(line for line in caplog.messages if "interrupted" in line)
    assert "FutureWarning" not in capfd.readouterr().err, "of names inside transformers, which no user can change"
    assert time.monotonic() - begun < 300  # most of it is starting; the end itself is below a minute, see the next test
    fork_groups(monkeypatch)
    assert launch([config(tmp_path / "results", *TWO, kind=CLASSIFYING)]) == 0
    assert only_record(tmp_path / "results")["execution"]["resumed_from"] == [2]
    assert not [name for name in os.environ if name.startswith("TORCHELASTIC")], "the agent's own settings"


@pytest.mark.slow
def test_error_of_one_process_is_shown_first_and_ends_the_others_within_a_minute(tmp_path, monkeypatch, caplog):
    failed = tmp_path / "failed at"
    action = f"open({str(failed)!r}, 'w').close(); raise ValueError('the second process has had enough')"
    inject(tmp_path, monkeypatch, f"exec({action!r})")
    assert launch([config(tmp_path / "results", *TWO, kind=CLASSIFYING)]) == 1
    assert time.time() - failed.stat().st_mtime < 60
    record = only_record(tmp_path / "results")
    assert record["status"] == "failed"
    assert "the second process has had enough" in record["message"]
    first = next(line for line in caplog.messages if line.startswith("failed: "))
    assert "the second process has had enough" in first
    assert "first failed: rank 1" in first


@pytest.mark.slow
def test_signal_to_the_parent_saves_and_stops_the_group(tmp_path):
    results = tmp_path / "results"

    def interrupt() -> None:
        curves = wait_for(lambda: list((results / "runs").glob("*/curves.jsonl")), "the training")
        wait_for(lambda: '"losses"' in curves[0].read_text(), "a step")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert launch([config(results, *TWO, *LONG, kind=CLASSIFYING)]) == 130
    record = only_record(results)
    assert record["status"] == "interrupted"
    [checkpoint] = (results / "runs").glob("*/checkpoints/checkpoint-*")
    assert f"after step {checkpoint.name.rpartition('-')[2]} of 2000" in record["message"]
    assert not [child for child in psutil.Process().children(recursive=True) if "--worker" in child.cmdline()]


@pytest.mark.slow
def test_group_ends_when_its_parent_is_killed(tmp_path):
    """No process goes on for a command that is gone; what was trained is saved."""
    from tests.small_cells import arguments, start

    results = tmp_path / "results"
    parent = start(*arguments(results, *TWO, *LONG, kind=CLASSIFYING))
    curves = wait_for(lambda: list((results / "runs").glob("*/curves.jsonl")), "the training")
    wait_for(lambda: '"losses"' in curves[0].read_text(), "a step")
    workers = [child for child in psutil.Process(parent.pid).children(recursive=True) if "--worker" in child.cmdline()]
    assert len(workers) == 2
    parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    assert only_record(results)["status"] == "interrupted"
    assert list((results / "runs").glob("*/checkpoints/checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), TWO], ids=["forks", "groups"])
def test_runs_side_by_side_end_when_their_command_is_killed(words, tmp_path):
    """They trained on, on cards that nobody seemed to use, and the same command found its runs taken."""
    from tests.small_cells import arguments, start

    results = tmp_path / "results"
    more = (*words, *LONG, "seed=0,1", "launch.parallel=2")
    parent = start("-m", *arguments(results, *more, kind=CLASSIFYING))
    curves = wait_for(lambda: len(found := list((results / "runs").glob("*/curves.jsonl"))) == 2 and found, "both")
    wait_for(lambda: all('"losses"' in path.read_text() for path in curves), "a step of each")
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    statuses = [json.loads(path.read_text())["status"] for path in (results / "records").glob("*.json")]
    assert statuses == ["interrupted"] * 2


def test_a_fork_ends_with_the_command_and_not_with_the_server_that_forked_it(monkeypatch):
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(is_alive=lambda: False))
    try:
        worker.end_with_parent()
        wait_for(ended.is_set, "the signal", seconds=30)
    finally:
        signal.signal(signal.SIGTERM, before)


# In every process: a group that is silent for five seconds is.
IMPATIENT = """
def impatient():
    import sys, time
    while "dual_lora.distributed.watchdog" not in sys.modules: time.sleep(0.05)
    time.sleep(0.5)
    sys.modules["dual_lora.distributed.watchdog"].SILENT_SECONDS = 5.0
import os, threading
if "RANK" in os.environ: threading.Thread(target=impatient, daemon=True).start()
"""


@pytest.mark.slow
def test_a_process_that_hangs_in_a_step_ends_its_group(tmp_path, monkeypatch):
    inject(tmp_path, monkeypatch, "time.sleep(1000)")
    with (tmp_path / "sitecustomize.py").open("a") as file:
        file.write(IMPATIENT)
    assert launch([config(tmp_path / "results", *TWO, kind=CLASSIFYING)]) == 130
    record = only_record(tmp_path / "results")
    assert record["status"] == "interrupted"
    assert record["message"].startswith("rank 1 does not respond: it is in faulty (sitecustomize.py:")
    assert "waiting for it: rank 0" in record["message"]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (signal.SIGINT, "stopped at once by a second Ctrl-C"),
        (
            signal.SIGTERM,
            "not done 0 minutes after SIGINT",
        ),  # a sweep's parent, after a terminal that tells all of them
    ],
)
def test_a_second_ctrl_c_alone_stops_at_once_and_is_told_as_one(second, expected, tmp_path, monkeypatch):
    """It was told as "rank 0 was ended by SIGKILL (the host may be out of memory: see dmesg)".

    One Ctrl-C in the terminal of a sweep with several groups at a time was two signals to each: none saved its work.
    """
    start = tmp_path / "start.json"
    patient = "import signal, time; signal.signal(15, lambda *_: None); print(1, flush=True); time.sleep(600)"
    monkeypatch.setattr(group, "GRACE_SECONDS", 1.0)
    with subprocess.Popen([sys.executable, "-c", patient, str(start)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        here = group.Group(start, None)
        here._note(signal.SIGINT, None)
        here._note(second, None)
        assert child.wait(60) == -signal.SIGKILL
    here._errors.append(ChildFailedError("worker", {0: ProcessFailure(0, child.pid, -signal.SIGKILL, "none")}))
    said = here.first_failure()
    assert (said["status"], said["message"]) == ("interrupted", f"{expected}; the same command continues")


def test_a_process_that_has_written_its_record_is_not_ended_by_the_agent(tmp_path, monkeypatch):
    """The first one to exit made the agent end the slower ones: "rank 0 was ended by SIGTERM" replaced the step."""
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "join", lambda device: None)
    monkeypatch.setattr(processes, "leave", lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(watchdog, "watch", lambda folder, rank: None)
    monkeypatch.setattr(lifecycle, "run", lambda item: {"status": "interrupted", "message": "after step 3 of 9"})
    try:
        [item] = prepare([config(tmp_path)])
        assert worker.work(str(write_config(item))) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
        gc.unfreeze()
    assert ended == []


def test_a_sweep_waits_for_its_groups_at_a_second_ctrl_c_too(tmp_path, monkeypatch, caplog):
    """Which ended in a traceback, before their records were there to be shown."""

    class Group:
        told: ClassVar[list[str]] = []
        returncode = None

        def poll(self) -> int | None:
            raise KeyboardInterrupt

        def terminate(self) -> None:
            self.told.append("end")

        def wait(self) -> int:
            self.told.append("wait")
            if self.told.count("wait") == 1:
                raise KeyboardInterrupt
            return 130

    monkeypatch.setattr(local, "_start", lambda item, place: Group())
    assert local.side_by_side(prepare([config(tmp_path, "launch.parallel=2")])) == [None]
    assert Group.told == ["end", "wait", "wait"]
    assert "stopped; the same command continues" in caplog.messages
