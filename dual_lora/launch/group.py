"""A group of processes that work on one run, and the parent that watches it: torchrun's agent inside this process.

If a process of the group dies, the others are ended (SIGTERM, SIGKILL after 30 s). The error of the first one is shown
first and goes into the record. A signal to stop is passed on, and the group gets time to write a checkpoint.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from dual_lora import records, shipped
from dual_lora.config import LaunchConfig
from dual_lora.distributed import watchdog
from dual_lora.launch.worker import FAILURES, STACKS, end_with_parent

if TYPE_CHECKING:
    from dual_lora.runs.resolve import Resolved

logger = logging.getLogger(__name__)
# Enough to write a checkpoint of a large run; after that the group is killed.
GRACE_SECONDS = 15 * 60.0
# How long a process may be stopped (SIGSTOP) before its group is ended; the others would wait for it for an hour.
STOPPED_SECONDS = 60.0
_LOOK_SECONDS = 5.0
# The message of a process whose partner in a collective operation has died.
_FOLLOWS = re.compile(
    r"[Cc]onnection (?:closed|reset|refused)|[Bb]roken pipe|NCCL|remote process exited|was ended by SIGTERM|gloo"
)
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Rendezvous:
    """Where the nodes of a run meet: `host:port` of the first node, and a name that is unique to this start."""

    endpoint: str = "localhost:0"
    name: str = ""
    node: int = 0


class Group:
    """The processes of one run on this node."""

    def __init__(self, file: Path, launch: LaunchConfig, rendezvous: Rendezvous | None = None) -> None:
        self.file, self.launch, self.rendezvous = file, launch, rendezvous or Rendezvous()
        self.stopped_by: str | None = None
        self._errors: list[BaseException] = []
        self._stopped: dict[psutil.Process, float] = {}  # since when, as it was first seen
        self._unresponsive: list[dict[str, Any]] = []
        self._stacks: dict[int, str] = {}  # of processes that are silent, as of the last look
        self._told, self._ended = 0.0, False  # when the first one was; whether `_kill` ended the group

    def run(self, handle_signals: bool = True) -> None:
        """Start the group and wait for its end. `first_failure` then returns what went wrong."""
        thread = threading.Thread(target=self._agent, daemon=True)
        handled = _STOPPING if handle_signals and threading.current_thread() is threading.main_thread() else ()
        previous = {number: signal.signal(number, self._note) for number in handled}
        try:
            thread.start()
            looked = time.monotonic()
            while thread.is_alive():
                # Short waits: a signal handler runs between two of them.
                thread.join(0.2)
                if time.monotonic() - looked > _LOOK_SECONDS:
                    self.end_stopped()
                    self.end_silent()
                    looked = time.monotonic()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None:
            if number == signal.SIGINT:  # a person's; a sweep's parent sends SIGTERM where a terminal has sent SIGINT
                self._kill("stopped at once by a second Ctrl-C; the same command continues")
            return
        self.stopped_by = signal.Signals(number).name
        logger.error("%s: finishing the step and writing a checkpoint; a second Ctrl-C stops at once", self.stopped_by)
        self._signal(signal.SIGTERM)
        late = f"not done {GRACE_SECONDS / 60:.0f} minutes after {self.stopped_by}; the same command continues"
        timer = threading.Timer(GRACE_SECONDS, self._kill, [late])
        timer.daemon = True
        timer.start()

    def stop(self, why: str) -> None:
        """Ask the group to write a checkpoint and end, and wait until it has."""
        self.stopped_by = self.stopped_by or why
        _, alive = psutil.wait_procs(self._signal(signal.SIGUSR2), timeout=GRACE_SECONDS)
        for process in alive:
            process.kill()

    def _signal(self, number: int) -> list[psutil.Process]:
        workers = self.workers()
        for process in workers:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        return workers

    def _kill(self, message: str, rank: int | None = None, trace: str = "") -> None:
        """End all processes, and keep why for the record: none of them ended by itself."""
        if self._signal(signal.SIGKILL):
            said = {"rank": rank, "time": time.time(), "status": "interrupted", "message": message, "trace": trace}
            self._unresponsive.append(said)
            self._ended = True

    def workers(self) -> list[psutil.Process]:
        """Return the living processes of the group on this node."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if str(self.file) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def end_stopped(self) -> None:
        """Kill processes that have been stopped for long, and keep for the record that they did not respond.

        One that is stopped together with this parent (Ctrl-Z, a suspended job) has a whole minute from its return.
        """
        now, stopped = time.monotonic(), {}
        for process in self.workers():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_STOPPED:
                    continue
                stopped[process] = self._stopped.get(process, now)
                if now - stopped[process] > STOPPED_SECONDS:
                    rank = int(process.environ().get("RANK", "0"))
                    message = (
                        f"rank {rank} does not respond: its process {process.pid} has been stopped (SIGSTOP) for "
                        f"{STOPPED_SECONDS:.0f} s; the same command continues"
                    )
                    said = {"rank": rank, "time": time.time(), "status": "interrupted", "message": message, "trace": ""}
                    self._unresponsive.append(said)
                    process.kill()
        self._stopped = stopped

    def end_silent(self) -> None:
        """End the group if a process has made no progress for long, and keep for the record which one and where."""
        stacks = watchdog.told(self.file.with_suffix(f".{STACKS}"))
        self._told = self._told or (time.monotonic() if stacks else 0.0)
        complete, self._stacks = stacks == self._stacks, stacks
        others_may_follow = time.monotonic() - self._told < 6 * _LOOK_SECONDS and len(stacks) < len(self.workers())
        if not stacks or self._ended or not complete or others_may_follow:
            return
        rank, message = watchdog.blame(stacks)
        message += f", for {watchdog.SILENT_SECONDS / 60:.0f} minutes without a step; the same command continues"
        self._kill(message, rank, stacks[rank])

    def _agent(self) -> None:
        """Run torchrun's agent. In a thread it installs no signal handlers; they would allow a group only 30 s."""
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # `settle` shows the cause
        folder = self.file.with_suffix(".ranks")
        folder.mkdir(parents=True, exist_ok=True)
        processes = self.launch.processes_per_node
        meeting = self.rendezvous
        alone = self.launch.nodes == 1
        config = LaunchConfig(
            min_nodes=self.launch.nodes,
            max_nodes=self.launch.nodes,
            nproc_per_node=processes,
            run_id=meeting.name or uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=meeting.endpoint,
            rdzv_configs={"timeout": 900, "is_host": meeting.node == 0},
            max_restarts=0,  # the run's own resume is exact; a restart by the agent would hide the error
            monitor_interval=0.2,
            local_addr="127.0.0.1" if alone else None,
            # The first process of a node writes to this terminal, the others to files.
            logs_specs=DefaultLogsSpecs(str(folder), redirects=dict.fromkeys(range(1, processes), Std.ALL)),
        )
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        if alone and sys.platform == "linux":
            # Without a network a machine may be unable to resolve its own name, which these two use to connect.
            for library in ("GLOO", "NCCL"):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
        known = set(os.environ)
        try:
            program, *words = shipped.command()
            elastic_launch(config, program)(*words, "--worker", str(self.file))
        except BaseException as error:
            self._errors.append(error)
        finally:  # the agent leaves settings, which the next command in this process would take for another tool's
            for name in set(os.environ) - known:
                del os.environ[name]

    def first_failure(self) -> dict[str, Any] | None:
        """Return {rank, status, message, trace} of the process that failed first, or None if no cause is known."""
        folder = self.file.with_suffix(f".{FAILURES}")
        found = [records.read_json(path, _failure) for path in folder.glob("rank-*.json")]
        said = [entry for entry in found if entry is not None] + self._unresponsive
        said += [] if self._ended else self.silent_deaths({entry["rank"] for entry in said})
        # A process notices within milliseconds that another has died, often before the agent: that is not the cause.
        return min(said, key=lambda entry: (follows(entry), entry["time"]), default=None)

    def silent_deaths(self, spoke: set[int]) -> list[dict[str, Any]]:
        """Return this node's processes that a signal ended or that could not be started; `spoke`: left an error."""
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        found: list[dict[str, Any]] = []
        for error in self._errors:
            if not isinstance(error, ChildFailedError):
                message = f"the group could not be started: {type(error).__name__}: {error}"
                found.append({"rank": None, "time": time.time(), "status": "failed", "message": message, "trace": ""})
                continue
            for rank, failure in error.failures.items():
                if failure.exitcode < 0 and rank not in spoke:
                    found.append(
                        {"rank": rank, "time": failure.timestamp, "trace": ""} | death(rank, -failure.exitcode)
                    )
        return found

    def clean(self) -> None:
        """Remove the files that only this start needed; the logs of a failed start stay."""
        if not self._errors:
            for suffix in (".ranks", f".{FAILURES}", f".{STACKS}"):
                shutil.rmtree(self.file.with_suffix(suffix), ignore_errors=True)
            self.file.unlink(missing_ok=True)


def _failure(values: Any) -> dict[str, Any]:
    kinds = {"rank": int, "time": float, "status": str, "message": str, "trace": str}
    return {name: kind(values[name]) for name, kind in kinds.items()}


def follows(failure: dict[str, Any]) -> bool:
    """Whether a process failed because another had."""
    return bool(_FOLLOWS.search(failure["message"]))


def death(rank: int, number: int) -> dict[str, Any]:
    name = signal.Signals(number).name
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        return {"status": "failed", "message": f"rank {rank} crashed with {name}"}
    hint = " (the host may be out of memory: see dmesg)" if number == signal.SIGKILL else ""
    return {"status": "interrupted", "message": f"rank {rank} was ended by {name}{hint}"}


def run(item: Resolved, file: Path, rendezvous: Rendezvous | None = None) -> str:
    """Do one run as a group and return the status of its record, which is written here if no process could."""
    group = Group(file, item.config.launch, rendezvous)
    group.run()
    return settle(item, group)


def settle(item: Resolved, group: Group) -> str:
    """Make sure that the record says what happened, show the first error, and return the record's status."""
    from dual_lora.runs.lifecycle import write_failure

    known = records.read(item.record_path)
    if known is not None and known["status"] == "finished":
        group.clean()
        return "finished"
    failure = group.first_failure()
    if failure is None and known is not None:
        logger.error("%s: %s", known["status"], known.get("message"))
        return str(known["status"])
    if failure is None:
        why = group.stopped_by
        message = f"stopped by {why}" if why else "the processes ended without leaving an error"
        failure = {"rank": None, "status": "interrupted", "message": message, "trace": ""}
    where = "" if failure["rank"] is None else f" (first failed: rank {failure['rank']}; logs: {group.file.parent})"
    logger.error("%s: %s%s", failure["status"], failure["message"], where)
    if failure["trace"]:
        logger.error("%s", failure["trace"].rstrip())
    if failure["status"] == "refused":  # nothing ran, so there is nothing to record
        return "refused"
    return write_failure(item, failure["status"], failure["message"], failure["trace"])


def work(file: str) -> int:
    """`run.py --group FILE`: be the parent of one group, for several runs at a time."""
    from dual_lora.runs import lifecycle as running
    from dual_lora.runs.resolve import resolve

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    end_with_parent()
    item = resolve(running.load_config(Path(file)))
    return running.EXIT_CODES.get(run(item, Path(file)), 1)
