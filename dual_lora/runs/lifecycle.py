"""The life of a run: check, name, lock, train, evaluate, record. The same command again is always safe."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from dual_lora import methods, models, record, secrets, tasks
from dual_lora.config import ConfigError, RunConfig
from dual_lora.config.schedule import plan_batches
from dual_lora.distributed import processes
from dual_lora.lock import RunLock
from dual_lora.runs import warm_start
from dual_lora.runs.identity import identity
from dual_lora.runs.plan import at_budget
from dual_lora.runs.warm_start import WarmStart
from dual_lora.runs.work import Work
from dual_lora.tasks import splits
from dual_lora.tasks.base import Task
from dual_lora.training import stopping
from dual_lora.training.loss import check_smoothing
from dual_lora.training.trainer import Diverged, Interrupted

logger = logging.getLogger(__name__)
_NEARLY_NOTHING = 256 * 2**20  # bytes; cuBLAS's workspace takes 32 MiB on an H100, and others free some meanwhile
# On a CPU. A language model's logits (tokens × vocabulary) take gigabytes; a classifier's batch only gets faster: 2.0
# core-seconds for 32 examples of RTE with MiniLM and Dual LoRA in batches of 16, 2.45 in batches of 4.
_CPU_BATCH = {"causal_lm": 4, "classification": 16}
EXIT_CODES = {"finished": 0, "interrupted": 130, "timed_out": 130}  # every other status: 1


class ProcessFailed(RuntimeError):
    """This process of a group failed; what the group's record says is settled by its parent, which sees all."""

    def __init__(self, status: record.Status, message: str, trace: str) -> None:
        super().__init__(message)
        self.status, self.message, self.trace = status, message, trace


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that passed every cheap check and has its name."""

    config: RunConfig
    task: Task
    dtype: str
    device: str
    identity: dict[str, Any]
    start: WarmStart | None = None  # weights of another run to start from

    @property
    def run_id(self) -> str:
        return str(self.identity["run_id"])

    @property
    def folder(self) -> Path:
        return record.run_folder(self.config.results, self.run_id)

    @property
    def record_path(self) -> Path:
        return record.record_path(self.config.results, self.run_id)


def prepare(config: RunConfig) -> Prepared:
    """Check everything that can be checked in seconds and name the run.

    Raises `ConfigError` or `DataError`: a setting, a model that is not there, data that cannot be used.
    """
    device = resolve_device(config)
    plan_batches(config, world_size=config.launch.world_size)
    methods.check(config.method)
    config, _ = at_budget(config)
    check_writable(Path(config.results))
    models.check_available(config.model)
    task = tasks.load(config)
    methods.check_task(config.method, task.head)
    check_smoothing(task.head, config.recipe.label_smoothing)
    config = _bounded_batch(config, device, _CPU_BATCH[task.head.kind])
    splits.select(task, config)  # every file is read once now: a damaged one is found before any training
    dtype = models.resolve_dtype(config.model, device)
    start = warm_start.resolve(config)
    named = identity(
        config,
        dtype=dtype,
        model_fingerprint=models.fingerprint(config.model),
        data_fingerprint=task.fingerprint(),
        init_from=start.sha256 if start else "none",
    )
    return Prepared(config, task, dtype, device, named, start)


def _bounded_batch(config: RunConfig, device: str, largest: int) -> RunConfig:
    """Choose a small per-device batch on a CPU, unless one is asked for."""
    share = config.recipe.global_batch // max(1, config.launch.world_size)
    if device != "cpu" or config.launch.per_device_batch is not None or share < 1:
        return config
    batch = max(size for size in range(1, largest + 1) if share % size == 0)
    return dataclasses.replace(config, launch=dataclasses.replace(config.launch, per_device_batch=batch))


def resolve_device(config: RunConfig) -> str:
    """Return "cuda" or "cpu". Raises `ConfigError` where CUDA is asked for and absent."""
    asked = config.launch.device
    if config.launch.name == "slurm" and "SLURM_JOB_ID" not in os.environ:
        return "cpu" if asked == "cpu" else "cuda"  # of the compute node: this one only submits
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "launch.device=cuda, but torch finds no CUDA device; use launch.device=cpu (or auto), or check the driver "
            f"and that torch {torch.__version__} is a CUDA build"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def check_writable(results: Path) -> None:
    """Raise `ConfigError` if records or runs could not be written at the end."""
    for folder in (results / "records", results / "runs"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe.{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"results={results}: {folder} cannot be written ({error}); use results=FOLDER, or make it writable"
            ) from None


def existing(prepared: Prepared) -> dict[str, Any] | None:
    """Return the record that makes running unnecessary, or None if there is something to do."""
    known = record.read(prepared.record_path)
    if known is None or known["status"] in ("interrupted", "timed_out"):
        return None
    if known["status"] != "finished" and prepared.config.retry:
        return None
    return known


def run(prepared: Prepared) -> dict[str, Any]:
    """Run (or continue, or skip) and return the record, which is written in any case.

    In a group every process calls this; the first one holds the lock and writes. Raises `RunIsBusy` if another process
    works on this run, `ProcessFailed` in a group.
    """
    # Checkpoints are plain tensors and numbers: libraries that would unpickle anything (DeepSpeed) must not either.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    known = processes.from_main(lambda: existing(prepared))
    if known is not None:
        return known
    with processes.held_by_main(RunLock(prepared.folder)):
        known = processes.from_main(lambda: existing(prepared))  # the process we waited for may have finished it
        if known is not None:
            return known
        if processes.is_main():
            record.write_json(prepared.folder / "config.json", prepared.config.to_dict())
        with stopping.signals_interrupt():
            made, error = _run_locked(prepared)
        if processes.is_main():
            record.write_json(prepared.record_path, made)
    if error is not None and processes.world_size() > 1:
        raise ProcessFailed(made["status"], made["message"], error)
    return made


def _run_locked(prepared: Prepared) -> tuple[dict[str, Any], str | None]:
    """Return the record, and the trace of what stopped this process but maybe not the others of its group."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    cell = Work(prepared.config, prepared.task, prepared.dtype, prepared.device, prepared.folder, prepared.start)
    status: record.Status = "failed"
    message = trace = None
    try:
        cell.run()
        status = "finished"
    except Diverged as error:
        status, message = "diverged", str(error)
    except (Interrupted, KeyboardInterrupt) as error:
        status, message = _stopped(), str(error) or "stopped by the keyboard"
    except ConfigError:
        raise
    except Exception as error:  # the record of a failed run names its error; the trace goes beside it
        message, trace = secrets.hide(f"{type(error).__name__}: {error}"), secrets.hide(traceback.format_exc())
        if _out_of_memory(error):
            detail = f" ({str(error).splitlines()[0]})" if str(error) else ""
            status, message = "out_of_memory", f"{cell.memory_advice()}{detail}"
        elif stopping.asked():  # another process of the group was faster to stop, and this one waited for it
            status, message, trace = _stopped(), f"stopped by {stopping.asked()}", None
        else:
            _keep_trace(prepared.folder, message, trace)
    made = record.build(
        status=status,
        identity=prepared.identity,
        scores=cell.scores(),
        curves=cell.curves(),
        cost=cell.cost(),
        execution=cell.execution(),
        origin={**cell.origin(), "started": started, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
        message=message,
    )
    if prepared.config.tracking == "wandb" and processes.is_main():
        from dual_lora.runs.tracking import track

        track(made, prepared.folder)
    return made, trace


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; beside other processes of one GPU, libraries and driver say so in their own words."""
    words = ["out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"]
    if _card_is_full():  # seen on a card with a few MiB left, where cuBLAS found no place for its workspace
        words += ["CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_INTERNAL_ERROR"]
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _card_is_full() -> bool:
    """Whether less is free on the current GPU, for all its processes together, than a library may want at once."""
    if not torch.cuda.is_initialized():
        return False
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError:  # the error before left the GPU's context unusable
        return False
    return free < _NEARLY_NOTHING


def _stopped() -> record.Status:
    return "timed_out" if stopping.asked() == "SIGUSR2" else "interrupted"  # what SLURM sends before a time limit


def _keep_trace(folder: Path, message: str, trace: str) -> None:
    path = folder / ("error.txt" if processes.is_main() else f"error-{processes.rank()}.txt")
    try:
        path.write_text(trace)
    except OSError as error:  # a full disk; the trace is then in the log alone
        logger.error("%s\n%s\n(not kept: %s)", message, trace, error)
    else:
        logger.error("%s\n(trace: %s)", message, path)


def write_failure(prepared: Prepared, status: record.Status, message: str, trace: str) -> str:
    """Write the record of a run whose group failed, from what its parent saw. Returns the status now recorded.

    Curves and costs that the first process could still record are kept.
    """
    with RunLock(prepared.folder):
        known = record.read(prepared.record_path)
        if known is not None and known["status"] == "finished":
            return "finished"
        made = record.build(status=status, identity=prepared.identity, message=message)
        if known is not None:
            made = known | {"status": status, "message": message}
        if trace:
            _keep_trace(prepared.folder, message, trace)
        record.write_json(prepared.record_path, made)
    return status


def load_config(path: Path) -> RunConfig:
    """Read the resolved config that a parent wrote for its workers."""
    return RunConfig.from_dict(json.loads(path.read_text()))
