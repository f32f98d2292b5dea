"""Workers forked from a process that has loaded torch and this package, and has computed nothing.

Imports take a worker several seconds, longer than a short run trains; a study of hundreds of runs pays for them once
here. A fork is still a separate process: nothing leaks from one run to the next, and a crash affects no other run.

    serve(configs)                      # early: the server loads while this process checks the configs
    worker = Fork(file, log, environment)
    worker.poll(), worker.terminate(), worker.wait()      # as in subprocess.Popen
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dual_lora import shipped
from dual_lora.config import RunConfig
from dual_lora.tasks import module_name

_CONTEXT = multiprocessing.get_context("forkserver")
_EVERY = [
    "dual_lora.runs.lifecycle",
    "dual_lora.launch.worker",
    "dual_lora.methods.application",
    "dual_lora.models.loading",
]
_PIPELINES = {"glue": "dual_lora.evaluation.classifier"}
# What a task's scores import when the first of them is computed.
_SCORERS = {"glue": ["scipy.stats", "sklearn.metrics"], **dict.fromkeys(("e2e", "webnlg", "dart"), ["nltk.tokenize"])}


def serve(configs: Sequence[RunConfig]) -> None:
    """Start the process that workers are forked from, without waiting for it. One that is already running is kept."""
    # torch must not initialize the driver to say whether there is a GPU: processes forked after that could not use it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    tasks = {config.task.module for config in configs}
    pipelines = {_PIPELINES.get(module, "dual_lora.evaluation.causal_lm") for module in tasks}
    scorers = {library for module in tasks for library in _SCORERS.get(module, ())}
    preloaded = [*_EVERY, *sorted(pipelines), *(module_name(name) for name in sorted(tasks)), *sorted(scorers)]
    _CONTEXT.set_forkserver_preload(preloaded)
    multiprocessing.forkserver.ensure_running()


class Fork:
    """One worker that does what `run.py --worker FILE` does. It writes to `log` and has only `environment`.

    side_by_side: how many workers share this machine's cores, unless `OMP_NUM_THREADS` divides them.
    """

    def __init__(self, file: Path, log: Path, environment: Mapping[str, str], side_by_side: int) -> None:
        threads = None if "OMP_NUM_THREADS" in environment else max(1, (os.cpu_count() or 1) // side_by_side)
        self.began = time.time()
        self._process = _CONTEXT.Process(target=_work, args=(str(file), str(log), dict(environment), threads))
        self._process.start()

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; minus the signal number if a signal ended it."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


def _work(file: str, log: str, environment: dict[str, str], threads: int | None) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(log, "ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    import torch

    # A loaded package may have initialized the driver anyway (private: torch has no public way to ask).
    if torch.cuda._is_in_bad_fork():
        os.execv(sys.executable, [*shipped.command(), "--worker", file])
    if threads is not None:
        torch.set_num_threads(threads)
    from dual_lora.launch.worker import work

    sys.exit(work(file))
