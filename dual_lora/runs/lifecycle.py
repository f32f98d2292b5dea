"""The life of a run: check, name, lock, train, evaluate, record. The same command again is always safe."""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from dual_lora import records
from dual_lora.config import ConfigError, RunConfig
from dual_lora.config.words import PATHS
from dual_lora.distributed import processes
from dual_lora.evaluation import archive
from dual_lora.records import disk, redaction
from dual_lora.records.lock import RunLock
from dual_lora.runs import adapter_card, leftovers
from dual_lora.runs.resolve import Resolved
from dual_lora.runs.work import Work
from dual_lora.training import stopping
from dual_lora.training.callbacks import Diverged

logger = logging.getLogger(__name__)
_NEARLY_NOTHING = 256 * 2**20  # bytes; cuBLAS's workspace takes 32 MiB on an H100, other processes may free some
EXIT_CODES = {"finished": 0, "interrupted": 130, "timed_out": 130}  # every other status: 1


class ProcessFailed(RuntimeError):
    """This process of a group failed; its parent, which sees all processes, decides what the group's record says."""

    def __init__(self, status: records.Status, message: str, trace: str) -> None:
        super().__init__(message)
        self.status, self.message, self.trace = status, message, trace


def existing(resolved: Resolved) -> dict[str, Any] | None:
    """Return the record that makes the run unnecessary, or None if there is something to do."""
    known = records.read(resolved.record_path)
    if known is None or known["status"] in ("interrupted", "timed_out"):
        return None
    if known["status"] != "finished" and resolved.config.retry:
        return None
    return known


def run(resolved: Resolved) -> dict[str, Any]:
    """Run (or continue, or skip) and return the record, which is written in any case.

    In a group every process calls this; the first one holds the lock and writes. Raises `RunIsBusy` if another process
    works on this run, `ProcessFailed` in a group, `ConfigError` if the disk is too full for a record.
    """
    try:
        return _run(resolved)
    except OSError as error:
        full = disk.shortage(error, resolved.folder)
        if full is None:
            raise
        raise ConfigError(f"{full}. There was no room for a record") from None


def _run(resolved: Resolved) -> dict[str, Any]:
    # Checkpoints are plain tensors and numbers; libraries that would unpickle anything (DeepSpeed) must not do so.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    known = processes.from_main(lambda: existing(resolved))
    if known is not None:
        return known
    with processes.held_by_main(RunLock(resolved.folder)):
        known = processes.from_main(lambda: existing(resolved))  # the process we waited for may have finished it
        if known is not None:
            return known
        if processes.is_main():
            save_config(resolved.folder / "config.json", resolved.config)
            records.write_json(resolved.folder / "planned.json", {"steps": resolved.steps})  # for `status --watch`
        with stopping.signals_interrupt():
            made, error = _run_locked(resolved)
            if processes.is_main():
                with stopping.held():
                    made = _keep(resolved, made)
    if error is not None and processes.world_size() > 1:
        raise ProcessFailed(made["status"], made["message"], error)
    return made


def _keep(resolved: Resolved, made: dict[str, Any]) -> dict[str, Any]:
    """Write the record and what goes with it; return the record as it is read."""
    made = records.write(resolved.record_path, made)
    _archive(resolved, made)
    if made["status"] == "finished" and (resolved.folder / "adapter").is_dir():
        adapter_card.write(resolved.folder / "adapter", made)
    leftovers.free(resolved.folder, made)
    return made


def _archive(resolved: Resolved, made: dict[str, Any]) -> None:
    """Keep a finished run's replies next to its record; what goes wrong there costs no run."""
    if made["status"] == "finished":
        try:
            to = archive.path(resolved.config.results, resolved.run_id)
            archive.write(made, archive.of_folder(made, resolved.folder / "predictions"), to)
        except OSError as error:
            logger.warning("no archive of the replies: %s", error)


def _run_locked(resolved: Resolved) -> tuple[dict[str, Any], str | None]:
    """Return the record, and the trace of an error that stopped this process (the others of its group may go on)."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    work = Work(resolved)
    status: records.Status = "failed"
    message = trace = None
    try:
        work.run()
        status = "finished"
    except Diverged as error:
        status, message = "diverged", str(error)
    except (stopping.Interrupted, KeyboardInterrupt) as error:
        status, message = _stopped(), str(error) or "stopped from the keyboard"
    except ConfigError:
        raise
    except Exception as error:  # the record of a failed run names its error; the trace is kept next to it
        message, trace = redaction.hide(f"{type(error).__name__}: {error}"), redaction.hide(traceback.format_exc())
        if _out_of_memory(error):
            detail = f" ({str(error).splitlines()[0]})" if str(error) else ""
            status, message = "out_of_memory", f"{work.memory_advice()}{detail}"
        elif stopping.asked():  # another process of the group stopped first, and this one waited for it
            status, message, trace = _stopped(), f"stopped by {stopping.asked()}", None
        elif full := disk.shortage(error, resolved.folder):
            message = full
        else:
            _keep_trace(resolved.folder, message, trace)
    made = records.build(
        status=status,
        identity=resolved.identity,
        scores=work.scores(),
        curves=work.curves(),
        cost=work.cost(),
        execution=work.execution(),
        origin={**work.origin(), "started": started, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
        message=message,
    )
    if resolved.config.tracking == "wandb" and processes.is_main():
        from dual_lora.runs.tracking import track

        track(made, resolved.folder)
    return made, trace


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. On a shared GPU, libraries and driver report it in different words."""
    words = ["out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"]
    if _card_is_full():  # seen on a card with a few MiB left, where cuBLAS found no room for its workspace
        words += ["CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_INTERNAL_ERROR"]
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _card_is_full() -> bool:
    """Whether the current GPU, perhaps shared with other processes, has less free memory than a library may request."""
    if not torch.cuda.is_initialized():
        return False
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError:  # the first error left the GPU's context unusable
        return False
    return free < _NEARLY_NOTHING


def _stopped() -> records.Status:
    return "timed_out" if stopping.asked() == "SIGUSR2" else "interrupted"  # what SLURM sends before a time limit


def _keep_trace(folder: Path, message: str, trace: str) -> None:
    path = folder / ("error.txt" if processes.is_main() else f"error-{processes.rank()}.txt")
    try:
        path.write_text(trace, encoding="utf-8")
    except OSError as error:  # a full disk; then the trace is only in the log
        logger.error("%s\n%s\n(not kept: %s)", message, trace, error)
    else:
        logger.error("%s\n(trace: %s)", message, path)


def write_failure(resolved: Resolved, status: records.Status, message: str, trace: str) -> str:
    """Write the record of a run whose group failed, from what its parent saw. Returns the recorded status.

    Curves and costs that the first process could still record are kept.
    """
    with RunLock(resolved.folder):
        known = records.read(resolved.record_path)
        if known is not None and known["status"] == "finished":
            return "finished"
        made = records.build(status=status, identity=resolved.identity, message=message)
        if known is not None:
            made = known | {"status": status, "message": message}
        if trace:
            _keep_trace(resolved.folder, message, trace)
        records.write(resolved.record_path, made)
    return status


def save_config(path: Path, config: RunConfig) -> None:
    """Write a resolved config, without the secrets that a run does not read (an exported token in launch.setup)."""
    records.write_json(path, redaction.hide_all(config.to_dict(), but=PATHS))


def load_config(path: Path) -> RunConfig:
    """Read the resolved config that a parent wrote for its workers. Raises `ConfigError` if the file is damaged."""
    try:
        return RunConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except records.UNREADABLE as error:
        raise ConfigError(f"{path} is damaged ({error}); give the run's command again, which writes it") from None
