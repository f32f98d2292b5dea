"""Runs on this machine: in this process, or as workers and groups of workers, N runs at a time."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dual_lora import shipped
from dual_lora.config import ConfigError
from dual_lora.launch import forks
from dual_lora.launch.titles import title
from dual_lora.records.lock import RunIsBusy

if TYPE_CHECKING:
    from dual_lora.runs.resolve import Resolved

logger = logging.getLogger(__name__)
Worker = forks.Fork | subprocess.Popen[bytes]


def one_by_one(prepared: list[Resolved]) -> list[dict[str, Any] | None]:
    """Do every run in this process. An interruption ends the sweep; a failure does not."""
    from dual_lora.runs import lifecycle

    records: list[dict[str, Any] | None] = []
    begun, done = time.perf_counter(), 0
    for number, item in enumerate(prepared, 1):
        if len(prepared) > 1:
            logger.info("\n[%d/%d] %s", number, len(prepared), title(item.config))
        try:
            known = lifecycle.existing(item)
            if known is not None:
                logger.info("%s before: %s", known["status"], item.record_path)
            made = known or lifecycle.run(item)
        except (RunIsBusy, ConfigError) as error:
            logger.error("error: %s", error)
            records.append(None)
            continue
        if made["status"] != "finished":
            logger.error("%s: %s", made["status"], made.get("message"))
            if known is not None:
                logger.error("the same command with retry=true runs it again")
        records.append(made)
        done += known is None
        if known is None and number < len(prepared):
            left = (time.perf_counter() - begun) / done * (len(prepared) - number)
            logger.info("[%d/%d] done, about %.0f s left if the others take as long", number, len(prepared), left)
        if made["status"] == "interrupted":
            logger.error("the same command continues this run")
            break
    return records + [None] * (len(prepared) - len(records))


def write_config(item: Resolved) -> Path:
    """Write the resolved config of a run for its workers and return the file.

    Every start has its own file: two shells that start the same run must not change each other's settings.
    """
    from dual_lora.runs.lifecycle import save_config

    # Workers on a compute node must resolve "auto" as this process did when it named the run.
    launch = dataclasses.replace(item.config.launch, device=item.device)
    config = dataclasses.replace(item.config, launch=launch)
    file = item.folder / "starts" / f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.json"
    save_config(file, config)
    return file


def side_by_side(prepared: list[Resolved]) -> list[dict[str, Any] | None]:
    """Start each run as a worker process or a group of them, `launch.parallel` runs at a time.

    With one run at a time its output is shown; several write to the `log.txt` in their run's folder.
    """
    from dual_lora import records
    from dual_lora.runs import lifecycle

    waiting = [item for item in prepared if lifecycle.existing(item) is None]
    if prepared[0].config.launch.parallel == 1:
        _groups_one_by_one(waiting)
    else:
        _several_at_a_time(waiting, prepared[0].config.launch.parallel)
    return [records.read(item.record_path) for item in prepared]


def _groups_one_by_one(waiting: list[Resolved]) -> None:
    from dual_lora.launch import group

    for number, item in enumerate(waiting, 1):
        logger.info("\n[%d/%d] %s", number, len(waiting), title(item.config))
        if group.run(item, write_config(item)) == "interrupted":
            logger.error("the same command continues this run")
            break


def _several_at_a_time(waiting: list[Resolved], parallel: int) -> None:
    """A run that runs out of memory next to others is tried again after the rest, with fewer at a time from then on."""
    running: list[tuple[Resolved, Worker, int]] = []  # with its place among the runs at work
    total, begun = len(waiting), time.perf_counter()
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                item = waiting.pop(0)
                place = min(set(range(parallel)) - {taken for _, _, taken in running})
                running.append((item, _start(item, place), place))
                logger.info("started %s (%s)", title(item.config), item.folder / "log.txt")
            for item, process, place in list(running):
                if process.poll() is not None:
                    running.remove((item, process, place))
                    _record_crash(item, process)
                    others = _sharing(item, place, running)
                    if others and process.returncode == 1 and _out_of_memory(item):
                        parallel = min(parallel, len(running))
                        again = dataclasses.replace(item.config, retry=True)
                        waiting.append(dataclasses.replace(item, config=again))
                        logger.warning(
                            "out of memory next to %d other run(s): tried again last, from now on %d at a time: %s",
                            others, parallel, title(item.config),
                        )  # fmt: skip
                        continue
                    done = total - len(waiting) - len(running)
                    left = (time.perf_counter() - begun) / done * (total - done)
                    logger.info(
                        "[%d/%d] %s, about %.0f s left: %s",
                        done, total, _ending(item, process.returncode), left, title(item.config),
                    )  # fmt: skip
            time.sleep(0.2)
    except KeyboardInterrupt:
        for _, process, _ in running:
            process.terminate()
        for _, process, _ in running:
            _wait_for(process)
        logger.error("stopped; the same command continues")


def _wait_for(worker: Worker) -> None:
    """Wait for the end, also at another Ctrl-C: the terminal tells the worker too, which then stops at once."""
    while True:
        with suppress(KeyboardInterrupt):
            worker.wait()
            return


def _ending(item: Resolved, code: int | None) -> str:
    """Return how a run ended: its status and, where it did not finish, the reason and its log."""
    from dual_lora import records

    if code == 0:
        return "finished"
    try:
        known = records.read(item.record_path)
    except ConfigError:
        known = None
    said = f"{known['status']}: {known.get('message')}" if known else f"exit code {code}, before its record"
    return f"{said} (log: {item.folder / 'log.txt'})"


def _sharing(item: Resolved, place: int, running: list[tuple[Resolved, Worker, int]]) -> int:
    """Return how many runs at work share a card with this one; without cards all share the host's memory."""
    cards = set(_cards(place, item.config.launch.processes_per_node))
    shares = [set(_cards(taken, other.config.launch.processes_per_node)) for other, _, taken in running]
    return sum(1 for share in shares if not cards or share & cards)


def _out_of_memory(item: Resolved) -> bool:
    from dual_lora import records

    known = records.read(item.record_path)
    return known is not None and known["status"] == "out_of_memory"


def _start(item: Resolved, place: int) -> Worker:
    """Start a process that does one run: a forked worker, or the parent of a group."""
    file = write_config(item)
    cards = _cards(place, item.config.launch.processes_per_node)
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ",".join(cards)} if cards else {})}
    if item.config.launch.engine == "single":
        return forks.Fork(file, item.folder / "log.txt", environment, item.config.launch.parallel)
    with (item.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*shipped.command(), "--group", str(file)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
        )


def _record_crash(item: Resolved, worker: Worker) -> None:
    """Record a worker that a signal ended before it could leave an error; a group's parent does so itself."""
    from dual_lora.launch.group import death
    from dual_lora.runs import lifecycle

    if isinstance(worker, forks.Fork) and worker.returncode is not None and worker.returncode < 0:
        if item.record_path.exists() and item.record_path.stat().st_mtime >= worker.began:
            return  # it was exiting: the record says how its run ended
        said = death(0, -worker.returncode)
        try:
            lifecycle.write_failure(item, said["status"], said["message"], "")
        except RunIsBusy:  # another command works on this run
            return
        logger.error("%s: %s", said["status"], said["message"])


def _cards(place: int, wanted: int) -> list[str]:
    """Return the GPUs of the run at a place; runs share them if there are too few."""
    from dual_lora.distributed import processes

    every = processes.visible_cards()
    groups = max(1, len(every) // wanted)
    first = place % groups * wanted
    return every[first : first + wanted]
