"""One process of one run: it reads the resolved config, joins its group if it has one, and runs."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from dual_lora.config import ConfigError, DataError
from dual_lora.config.environment import ignore_renamed_settings
from dual_lora.records import redaction, write_json
from dual_lora.records.lock import RunIsBusy
from dual_lora.runs.garbage import uncollected

logger = logging.getLogger(__name__)
STACKS = "stacks"  # folder in which those that make no progress write where they are
FAILURES = "failures"  # folder in which the processes of a group write what stopped them


def say_what_matters() -> None:
    """Show what this suite says, and of the libraries' words those by which a user could change something."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "transformers", "datasets", "deepspeed", "DeepSpeed", "absl", "submitit"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    ignore_renamed_settings()


def work(file: str) -> int:
    """Run the resolved config in `file` as one process; returns the exit code."""
    say_what_matters()
    end_with_parent()
    with uncollected():
        from dual_lora.distributed import processes, watchdog
        from dual_lora.runs import lifecycle
        from dual_lora.runs.resolve import resolve, resolve_device

    gc.freeze()  # a training collects garbage: for half a second it would look through all that was imported
    try:
        config = lifecycle.load_config(Path(file))
        processes.join(resolve_device(config))
        if processes.world_size() > 1:
            watchdog.watch(Path(file).with_suffix(f".{STACKS}"), processes.rank())
        if not processes.is_main():
            logging.getLogger().setLevel(logging.WARNING)  # one process reports for all
        with uncollected():
            prepared = resolve(config)
        made = lifecycle.run(prepared)
        if processes.world_size() > 1:
            # All is written. The agent tells those to end that are slower to exit, and the record would name one.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except (ConfigError, DataError, RunIsBusy) as error:
        _leave_error(file, "refused", str(error), "")
        logger.error("error: %s", error)
        return _end(2)
    except lifecycle.ProcessFailed as error:
        _leave_error(file, error.status, error.message, error.trace)
        logger.error("rank %d: %s", processes.rank(), error.message)
        return _end(1)
    except BaseException as error:
        _leave_error(file, "failed", f"{type(error).__name__}: {error}", traceback.format_exc())
        logger.exception("rank %d", processes.rank())
        return _end(1)
    logger.info("%s %s", made["status"], made.get("message", ""))
    processes.leave()
    return lifecycle.EXIT_CODES.get(made["status"], 1)


def _end(code: int) -> int:
    """End a process of a group at once: a regular exit would wait for processes that may hang."""
    from dual_lora.distributed import processes

    if processes.world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _leave_error(file: str, status: str, message: str, trace: str) -> None:
    """Write what stopped this process, for the parent: the first failure in a group is the cause, the others follow."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    rank = int(os.environ.get("RANK", "0"))
    said = {"rank": rank, "time": time.time(), "status": status, "message": message, "trace": trace}
    folder = Path(file).with_suffix(f".{FAILURES}")
    try:
        write_json(folder / f"rank-{rank}.json", {k: _clean(v) for k, v in said.items()})
    except OSError as error:  # a full disk must not hide the message, which the log has too
        logger.error("cannot write %s: %s", folder, error)


def _clean(value: Any) -> Any:
    return redaction.hide(value) if isinstance(value, str) else value


def end_with_parent() -> None:
    """Stop as on SIGTERM (a checkpoint is written) when the command that started this process has ended."""
    parent = os.getppid()
    command = multiprocessing.parent_process()  # of a fork, whose parent is the server

    def watch() -> None:
        while os.getppid() == parent and (command is None or command.is_alive()):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
