"""A run on two nodes, whose jobs are called here one after the other: the first node keeps the record of both."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from dual_lora import records
from dual_lora.launch import group, prepare, slurm
from dual_lora.launch.local import write_config
from dual_lora.launch.slurm import SlurmCell
from dual_lora.launch.worker import FAILURES
from tests.small_cells import config, only_record


def test_a_process_that_is_killed_on_the_second_node_is_the_cause(tmp_path, monkeypatch):
    """The first node saw a connection break: the record said "failed", which the same command does not continue."""
    [item] = prepare(
        [config(tmp_path, "launch=slurm", "launch.nodes=2", "launch.engine=fsdp", "launch.per_device_batch=4")]
    )
    file = write_config(item)

    def ends(self, handle_signals):
        if self is first._group:
            said = {"rank": 1, "time": time.time(), "status": "failed", "trace": ""}
            message = "RuntimeError: [gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"
            records.write_json(Path(file).with_suffix(f".{FAILURES}") / "rank-1.json", said | {"message": message})
            threading.Timer(0.5, lambda: second()).start()
        else:
            died = ProcessFailure(local_rank=0, pid=1, exitcode=-9, error_file="none")
            self._errors.append(ChildFailedError("worker", {0: died}))

    before = {"rank": 0, "time": 1.0, "status": "failed", "message": "of a start before this one", "trace": ""}
    records.write_json(Path(file).with_suffix(f".{FAILURES}") / "rank-0.json", before)
    first, second = SlurmCell(str(file)), SlurmCell(str(file))
    monkeypatch.setattr(group.Group, "run", ends)
    monkeypatch.setattr(slurm, "_meeting", lambda: group.Rendezvous())
    monkeypatch.setattr(slurm, "_node", lambda: 0 if threading.current_thread() is threading.main_thread() else 1)
    with pytest.raises(RuntimeError, match="interrupted: "):
        first()
    record = only_record(tmp_path)
    assert (record["status"], record["message"].partition(" (")[0]) == ("interrupted", "rank 0 was ended by SIGKILL")


def test_nodes_meet_at_a_port_that_no_connection_of_the_node_takes(monkeypatch):
    """Linux gives outgoing connections ports from 32768 on: a job's could be taken before its processes began."""
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: SimpleNamespace(hostnames=["n7", "n8"], node=1))
    ports = set()
    for job in range(4_000_000, 4_030_000, 7):
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        meeting = slurm._meeting()
        host, _, port = meeting.endpoint.partition(":")
        assert (host, meeting.node, meeting.name) == ("n7", 1, f"{job}-0")
        ports.add(int(port))
    assert 1024 < min(ports) < max(ports) < 32768
    assert len(ports) > 4000, "jobs next to each other meet at ports of their own"
