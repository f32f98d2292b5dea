"""Starting runs: in this process, as worker processes N at a time. Workers read a file and never compose."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dual_lora import models
from dual_lora.config import ConfigError, MethodConfig, RunConfig
from dual_lora.lock import RunIsBusy
from dual_lora.tasks.base import DataError

logger = logging.getLogger(__name__)
RUN = Path(__file__).resolve().parent.parent / "run.py"
BASE_ROW = MethodConfig(name="none", label="Base model", trains="nothing")


def launch(cells: list[RunConfig]) -> int:
    """Run every cell and print how they compare. Returns the exit code: 0 if all finished."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "transformers", "datasets", "deepspeed", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("DUAL_LORA_COMMAND", " ".join(["python", "run.py", *sys.argv[1:]]))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cells = _with_base_rows(cells)
    if not cells[0].plan:
        for cell in cells:
            models.check_available(cell.model)
    if cells[0].plan:
        from dual_lora.plan import describe

        for cell in cells:
            print(describe(cell))
        return 0
    os.environ.pop("_DUAL_LORA_LAZY", None)
    from dual_lora import run

    try:
        prepared = list({item.run_id: item for item in (run.prepare(cell) for cell in cells)}.values())
    except DataError as error:
        raise ConfigError(str(error)) from None
    for item in prepared:
        logger.info("run %s: %s", item.run_id, title(item.config))
    records = _one_by_one(prepared) if len(prepared) == 1 or _shares_process(prepared) else _workers(prepared)
    _show(prepared, records)
    codes = [run.EXIT_CODES.get(record["status"], 1) if record else 1 for record in records]
    return max(codes, default=0)


def _with_base_rows(cells: list[RunConfig]) -> list[RunConfig]:
    """Put the untrained base row before each cell whose profile asks for it."""
    rows: list[RunConfig] = []
    for cell in cells:
        if cell.profile.base_row and cell.method.trains != "nothing":
            rows.append(dataclasses.replace(cell, method=BASE_ROW))
        rows.append(cell)
    return rows


def title(config: RunConfig) -> str:
    """Return one line that says which cell this is."""
    return (
        f"model={config.model.name} task={config.task.name} method={config.method.name} "
        f"protocol={config.protocol.name} profile={config.profile.name} seed={config.seed}"
    )


def _shares_process(prepared: list[Any]) -> bool:
    """Small sweeps run in this process, where imports and downloads happen once."""
    return prepared[0].config.launch.parallel == 1 and prepared[0].config.launch.engine == "single"


def _one_by_one(prepared: list[Any]) -> list[dict[str, Any] | None]:
    from dual_lora import run

    records: list[dict[str, Any] | None] = []
    for number, item in enumerate(prepared, 1):
        if len(prepared) > 1:
            logger.info("\n[%d/%d] %s", number, len(prepared), title(item.config))
        try:
            known = run.existing(item)
            if known is not None:
                logger.info("%s before: %s", known["status"], item.record_path)
            made = known or run.run(item)
        except RunIsBusy as error:
            logger.error("error: %s", error)
            records.append(None)
            continue
        if made["status"] != "finished":
            logger.error("%s: %s", made["status"], made.get("message"))
            if known is not None:
                logger.error("the same command with retry=true runs it again")
        records.append(made)
        if made["status"] == "interrupted":
            logger.error("the same command continues this run")
            break
    return records + [None] * (len(prepared) - len(records))


def _workers(prepared: list[Any]) -> list[dict[str, Any] | None]:
    """Start a worker per cell, `launch.parallel` at a time; their output goes to the run's `log.txt`."""
    from dual_lora import record, run

    waiting = [item for item in prepared if run.existing(item) is None]
    running: dict[Any, subprocess.Popen[bytes]] = {}
    total, begun = len(waiting), time.perf_counter()
    try:
        while waiting or running:
            while waiting and len(running) < prepared[0].config.launch.parallel:
                item = waiting.pop(0)
                file = item.folder / "config.json"
                record.write_json(file, item.config.to_dict())
                with (item.folder / "log.txt").open("ab") as log:
                    running[item] = subprocess.Popen(
                        [sys.executable, str(RUN), "--worker", str(file)],
                        stdout=log,
                        stderr=log,
                        stdin=subprocess.DEVNULL,
                    )
                logger.info("started %s (%s)", title(item.config), item.folder / "log.txt")
            for item, process in list(running.items()):
                if process.poll() is not None:
                    del running[item]
                    done = total - len(waiting) - len(running)
                    left = (time.perf_counter() - begun) / done * (total - done)
                    logger.info(
                        "[%d/%d] exit code %d, about %.0f s to go: %s",
                        done, total, process.returncode, left, title(item.config),
                    )  # fmt: skip
            time.sleep(0.2)
    except KeyboardInterrupt:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        logger.error("stopped; the same command continues")
    return [record.read(item.record_path) for item in prepared]


def work(file: str) -> int:
    """Run the resolved config in `file`; what a worker process does."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from dual_lora import run

    try:
        made = run.run(run.prepare(run.load_config(Path(file))))
    except (ConfigError, DataError, RunIsBusy) as error:
        logger.error("error: %s", error)
        return 2
    logger.info("%s %s", made["status"], made.get("message", ""))
    return run.EXIT_CODES.get(made["status"], 1)


def _show(prepared: list[Any], records: list[dict[str, Any] | None]) -> None:
    """Print samples, the comparison, where the records are and what to try next."""
    from rich.console import Console

    from dual_lora.report.screen import comparison
    from dual_lora.samples import side_by_side

    made = [record for record in records if record is not None]
    if not made:
        return
    console = Console()
    with console.capture() as captured:
        samples = side_by_side(prepared)
        if samples is not None:
            console.print(samples)
        console.print(comparison(made))
        for item in prepared:
            console.print(f"record: {item.record_path}", soft_wrap=True, highlight=False)
        console.print(f"next:   {_next_command(prepared[-1].config)}", soft_wrap=True, highlight=False)
    text = captured.get()
    print(f"\n{text}", end="")
    (prepared[-1].folder / "summary.txt").write_text(text)


def _next_command(config: RunConfig) -> str:
    if config.profile.name == "demo":
        return "python run.py -m profile=demo method=lora,dora,dual_lora"
    return "python scripts/make_tables.py"
