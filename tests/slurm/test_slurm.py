"""launch=slurm against a real SLURM on this machine: `make test-slurm`.

A sweep of four cells as an array; one job is killed from outside; the same command submits what is missing; a group of
two processes under ZeRO; a job that SLURM signals before its time limit saves, is requeued, and continues its own run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.slurm.cluster import Cluster, missing_programs
from tests.small_cells import CLASSIFYING, WRITING, arguments

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing_programs()) or os.getuid() != 0, reason="needs root and slurm-wlm, munge"),
]
SLURM = ["launch=slurm", "launch.signal_seconds=30", "launch.time_limit_minutes=20", "launch.cpus_per_task=1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


def submit(cluster: Cluster, *words: str) -> str:
    """Run the command a user would type; return its output."""
    environment = os.environ | cluster.environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def jobs_in(output: str) -> list[str]:
    return re.findall(r"^job (\d+(?:_\d+)?): ", output, re.MULTILINE)


def wait_for(cluster: Cluster, results: Path, condition: Callable[[], Any], minutes: float = 15) -> Any:
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(1)
    logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in (results / "slurm").rglob("*.out"))
    raise AssertionError(f"did not happen:\n{cluster.run('squeue')}\n{logs}")


def statuses(results: Path) -> list[str]:
    return sorted(json.loads(path.read_text())["status"] for path in (results / "records").glob("*.json"))


def test_plan_prints_the_jobs_and_submits_nothing(cluster, tmp_path):
    output = submit(cluster, "-m", *arguments(tmp_path, "seed=0,1", *SLURM, "plan=true", kind=CLASSIFYING))
    assert "#SBATCH --array=0-1%" in output
    assert "#SBATCH --time=20" in output
    assert cluster.run("squeue", "--noheader") == ""
    assert not (tmp_path / "slurm").exists()


def test_sweep_completes_though_a_job_is_killed(cluster, tmp_path):
    """Two methods, two seeds, two jobs at a time. The killed job's cell is submitted again, and no other."""
    words = ["-m", *arguments(tmp_path, "method=lora,dual_lora", "seed=0,1", *SLURM, kind=CLASSIFYING)]
    words.append("launch.parallel=2")
    first = jobs_in(submit(cluster, *words))
    assert len(first) == 4
    assert len({job.partition("_")[0] for job in first}) == 1, "one array"
    cluster.run("scancel", "--signal=KILL", first[-1])
    cluster.run("scancel", first[-1])
    again = submit(cluster, *words)
    queued = [line for line in again.splitlines() if "is queued or running" in line]
    assert len(queued) + len(jobs_in(again)) + again.count("finished before") == 4
    wait_for(cluster, tmp_path, lambda: cluster.run("squeue", "--noheader") == "")
    third = submit(cluster, *words)  # whatever of it is missing now
    assert len(jobs_in(third)) <= 1
    wait_for(cluster, tmp_path, lambda: statuses(tmp_path) == ["finished"] * 4)
    fourth = submit(cluster, *words)
    assert jobs_in(fourth) == []
    assert fourth.count("finished before") == 4


def test_two_processes_under_zero(cluster, tmp_path):
    zero = ["launch.engine=deepspeed", "launch.zero_stage=2", "launch.gpus_per_node=2", "launch.cpus_per_task=2"]
    zero.append("launch.per_device_batch=4")
    submit(cluster, *arguments(tmp_path, *SLURM, *zero, kind=CLASSIFYING))
    wait_for(cluster, tmp_path, lambda: statuses(tmp_path) == ["finished"])
    [path] = (tmp_path / "records").glob("*.json")
    execution = json.loads(path.read_text())["execution"]
    assert (execution["world_size"], execution["engine"], execution["zero_stage"]) == (2, "deepspeed", 2)


def test_signal_before_the_time_limit_saves_and_requeues(cluster, tmp_path):
    """SLURM's own signal, sent early. The job's second start continues its own run to the undisturbed numbers."""
    long = ["profile.max_steps=400", "recipe.epochs=100", "launch.save_every_steps=1000", "profile.train_examples=null"]
    [job] = jobs_in(submit(cluster, *arguments(tmp_path, *SLURM, *long, kind=WRITING)))
    curves = wait_for(cluster, tmp_path, lambda: list((tmp_path / "runs").glob("*/curves.jsonl")))
    wait_for(cluster, tmp_path, lambda: '"step"' in curves[0].read_text())
    cluster.run("scancel", "--signal=USR2", job)
    wait_for(cluster, tmp_path, lambda: statuses(tmp_path) in (["timed_out"], ["finished"]))
    assert statuses(tmp_path) == ["timed_out"]
    assert cluster.run("squeue", "--noheader", "--format=%i").strip() == job, "it is in the queue again"
    # SLURM holds a requeued job back for two minutes, until no process of its first start can be left.
    wait_for(cluster, tmp_path, lambda: statuses(tmp_path) == ["finished"])
    [path] = (tmp_path / "records").glob("*.json")
    record = json.loads(path.read_text())
    [resumed] = record["execution"]["resumed_from"]
    assert 0 < resumed < 400
    assert record["cost"]["steps"] == 400
    assert jobs_in(submit(cluster, *arguments(tmp_path, *SLURM, *long, kind=WRITING))) == []
