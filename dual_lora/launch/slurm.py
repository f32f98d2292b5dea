"""Runs as SLURM jobs, through submitit: one job per run of a sweep, in arrays; several nodes meet through torchrun.

A job is the parent of its run's processes, as on one machine. Before the time limit SLURM signals it; it lets the
processes write a checkpoint, requeues itself, and continues its own run. Submitting again submits only what is missing.

What a user puts into `#SBATCH` lines is checked and quoted: no value can start a new line or a command.
`launch.setup` is the deliberate exception: lines of shell that the user wants to run.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dual_lora import records, shipped
from dual_lora.config import ConfigError, LaunchConfig, RunConfig
from dual_lora.launch.local import write_config
from dual_lora.launch.slurm_options import EARLY_SECONDS, check_options
from dual_lora.launch.titles import title
from dual_lora.launch.worker import FAILURES
from dual_lora.records import redaction, slurm_queue

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from dual_lora.launch.group import Group, Rendezvous
    from dual_lora.runs.resolve import Resolved

logger = logging.getLogger(__name__)
T = TypeVar("T")
_MAX_REQUEUES = 1000
_FRUITLESS = 2  # starts in a row; more would be a thousand times the same
_HEAR_SECONDS = 20.0  # a shared file system shows a new file some seconds late
_KEPT = ("checkpoints/*/manifest.json", "trained.json", "predictions/*")
# What a cluster may not have, as sbatch calls it.
_REFUSABLE = ("partition", "account", "qos", "constraint", "nodes", "gpus_per_node", "cpus_per_task", "mem", "time")


def launch(configs: list[RunConfig]) -> int:
    """Submit the runs that are neither finished nor queued; with `plan=true` print the jobs. Returns the exit code.

    Raises `ConfigError`: an option that SLURM must not be given, or a machine without SLURM.
    """
    from dual_lora.launch import announce, describe, prepare

    for config in configs:
        check_options(config)
    if configs[0].plan:
        describe(configs)
        for group in _by_settings(configs, lambda config: config.launch):
            text = redaction.hide(script(group[0], len(group)))
            print(f"\n# {len(group)} job(s), {group[0].launch.parallel} at a time\n{text}")
        return 0
    prepared = prepare(configs)
    announce(prepared, least=1)  # a single run waits too
    for items in _by_settings(_missing(prepared), lambda item: item.config.launch):
        _submit(items, items[0].config.launch)
    return 0


def _missing(prepared: list[Resolved]) -> list[Resolved]:
    from dual_lora.runs import lifecycle

    waiting = []
    there = {item.run_id: lifecycle.existing(item) for item in prepared}
    jobs = slurm_queue.queued(item.folder for item in prepared if there[item.run_id] is None)
    for item in prepared:
        known, job = there[item.run_id], jobs.get(item.folder)
        if known is not None:
            logger.info("%s before: %s", known["status"], title(item.config))
        elif job is not None:
            logger.info("job %s is queued or running: %s", job, title(item.config))
        else:
            waiting.append(item)
    return waiting


def _by_settings(asking: list[T], settings: Callable[[T], LaunchConfig]) -> list[list[T]]:
    """Runs that ask for the same resources form one array."""
    groups: dict[str, list[T]] = {}
    for one in asking:
        groups.setdefault(repr(settings(one)), []).append(one)  # `launch.sbatch` is a dict, which is no key
    return list(groups.values())


def parameters(launch: LaunchConfig) -> dict[str, Any]:
    """Return submitit's parameters for one array."""
    here = shlex.quote(str(shipped.import_root()))
    gpus = 0 if launch.device == "cpu" else launch.processes_per_node
    optional = {
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "constraint": launch.constraint,
        "gpus_per_node": gpus or None,
        "mem": f"{launch.memory_gb}GB" if launch.memory_gb else None,
    }
    return {
        "job_name": "dual-lora",
        "time": launch.time_limit_minutes,
        "nodes": launch.nodes,
        "ntasks_per_node": 1,  # the job's process starts the others itself, as on one machine
        "cpus_per_task": launch.cpus_per_task or 8 * launch.processes_per_node,
        "signal_delay_s": launch.signal_seconds,
        "array_parallelism": launch.parallel,
        "setup": [
            f"export PYTHONPATH={here}${{PYTHONPATH:+:$PYTHONPATH}}",
            *launch.setup,
        ],
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **launch.sbatch},
        "srun_args": ["--kill-on-bad-exit=1"],  # a node that fails ends the others
        **{name: value for name, value in optional.items() if value is not None},
    }


def _python(launch: LaunchConfig) -> str:
    return shlex.join([*shlex.split(launch.container or ""), sys.executable])


def _folder(config: RunConfig) -> Path:
    return (Path(config.results) / "slurm").resolve()


def script(config: RunConfig, jobs: int) -> str:
    """Return the job script as SLURM gets it, also on a machine without SLURM."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = _folder(config)
    command = f"{_python(config.launch)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    many: dict[str, Any] = {"map_count": jobs} if jobs > 1 else {}
    return _make_sbatch_string(command=command, folder=folder, **parameters(config.launch), **many)


def _submit(items: list[Resolved], launch: LaunchConfig) -> None:
    import submitit

    folder = _folder(items[0].config)
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=_MAX_REQUEUES, python=_python(launch))
    except RuntimeError:
        raise ConfigError(
            "launch=slurm: this machine has no srun; run on a login node of a cluster, or see docs/launching.md for a "
            "one-node SLURM at home"
        ) from None
    executor.update_parameters(**parameters(launch))
    try:
        with executor.batch():
            jobs = [executor.submit(SlurmCell(str(write_config(item).resolve()))) for item in items]
    except submitit.core.utils.FailedJobError as error:
        said = " ".join(line.removeprefix("sbatch: error: ").strip() for line in str(error).splitlines())
        asked = {**parameters(launch), **launch.sbatch}
        words = " ".join(f"{name}={asked[name]}" for name in (*_REFUSABLE, *launch.sbatch) if name in asked)
        raise ConfigError(
            f"SLURM refused a job that asks for {words}: {said} (`sinfo` shows what this cluster has; plan=true prints "
            "the job's script)"
        ) from None
    for item, job in zip(items, jobs, strict=True):
        slurm_queue.keep(item.folder, job.job_id)
        logger.info("job %s: %s", job.job_id, title(item.config))
    logger.info("logs: %s; the same command submits what is still missing", folder)


class SlurmCell:
    """What a job calls: the parent of one run's processes on this node.

    The name stays: submitit's pickles of queued and requeued jobs hold it.

    fruitless: how many starts before this one, in a row, used up their time and kept nothing.
    """

    fruitless = 0  # of a job that an older version queued

    def __init__(self, file: str, fruitless: int = 0) -> None:
        self.file, self.fruitless = file, fruitless
        self._group: Group | None = None
        self._item: Resolved | None = None

    def __call__(self) -> str:
        from dual_lora.launch.group import Group, Rendezvous, settle
        from dual_lora.runs import lifecycle
        from dual_lora.runs.resolve import resolve

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        item = resolve(lifecycle.load_config(Path(self.file)))
        known = lifecycle.existing(item)
        if known is not None:
            return str(known["status"])
        nodes = item.config.launch.nodes
        self._item, self._had, self._began = item, _kept(item), time.monotonic()
        self._group = Group(Path(self.file), item.config.launch, _meeting() if nodes > 1 else Rendezvous())
        if _node() == 0:  # a requeued job has the file of its first start
            shutil.rmtree(self._group.file.with_suffix(f".{FAILURES}"), ignore_errors=True)
        self._group.run(handle_signals=False)  # submitit has set its handlers, and calls `checkpoint`
        if _node() > 0:
            _tell_first_node(self._group)
            return "the first node keeps the record"
        if nodes > 1:
            _hear_other_nodes(self._group)
        status = settle(item, self._group)
        if status != "finished":
            raise RuntimeError(f"{status}: {item.record_path}")
        return status

    def checkpoint(self) -> DelayedSubmission | None:
        """Called before the time limit: let the processes save and end; submitit then requeues the job, unless None."""
        from submitit.helpers import DelayedSubmission

        if self._group is not None:
            self._group.stop("the time limit of the job")
        fruitless = 0
        if self._item is not None and _kept(self._item) == self._had:
            fruitless = self.fruitless + self._used_its_time(self._item.config.launch)
        if self._item is None or fruitless < _FRUITLESS:
            return DelayedSubmission(SlurmCell(self.file, fruitless))
        self._give_up(self._item, fruitless)
        return None

    def _used_its_time(self, launch: LaunchConfig) -> bool:
        """Whether this is the time limit; a job that is preempted gets the same signal, at any time."""
        given = launch.time_limit_minutes * 60 - launch.signal_seconds - EARLY_SECONDS
        return time.monotonic() - self._began > 0.8 * given

    def _give_up(self, item: Resolved, fruitless: int) -> None:
        from dual_lora.runs import lifecycle

        limit = item.config.launch.time_limit_minutes
        message = (
            f"not queued again: {fruitless} jobs in a row reached launch.time_limit_minutes={limit} with nothing to "
            "continue from; the same command with more minutes continues"
        )
        logger.error("timed_out: %s", message)
        lifecycle.write_failure(item, "timed_out", message, "")


def _kept(item: Resolved) -> dict[str, int]:
    """Return the files that a later start continues from, with their sizes."""
    found = [path for kept in _KEPT for path in item.folder.glob(kept)]
    return {path.relative_to(item.folder).as_posix(): path.stat().st_size for path in found}


def _node() -> int:
    return int(os.environ.get("SLURM_NODEID", "0"))


def _tell_first_node(group: Group) -> None:
    """Leave for it which processes of this node a signal ended: there the others only see a connection that broke."""
    folder = group.file.with_suffix(f".{FAILURES}")
    for said in group.silent_deaths(spoke=set()):
        place = folder / f"rank-{said['rank']}.json"
        if said["rank"] is not None and not place.exists():
            records.write_json(place, said)


def _hear_other_nodes(group: Group) -> None:
    """Wait, not long, while all that is known of a failure is that it followed another one."""
    from dual_lora.launch.group import follows

    end = time.monotonic() + _HEAR_SECONDS
    while (failure := group.first_failure()) and follows(failure) and time.monotonic() < end:
        time.sleep(0.2)


def _meeting() -> Rendezvous:
    """Return where the nodes of this job meet; a requeued job meets under a new name."""
    import submitit

    from dual_lora.launch.group import Rendezvous

    environment = submitit.JobEnvironment()
    job = os.environ["SLURM_JOB_ID"]
    name = f"{job}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    port = 20000 + int(job) % 12000  # below those that Linux gives to outgoing connections
    return Rendezvous(f"{environment.hostnames[0]}:{port}", name, environment.node)
