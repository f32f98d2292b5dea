"""One run in a process of its own, as `bench scaling` makes, kills and compares them."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from dual_lora import shipped
from dual_lora.records import read_steps, write_text

DONE = "finished"
PATIENCE = 900.0  # seconds until a run that shows nothing is given up
_TABLE = threading.Lock()  # runs end in threads of one command


class Run:
    """A run.py in a folder of its own; the same command in the same folder continues it, or finds it finished.

    cards: the GPUs that the command sees, as CUDA_VISIBLE_DEVICES names them; None: all of them.
    """

    def __init__(self, folder: Path, words: list[str], cards: str | None = None) -> None:
        self.folder, self.command = folder, [*shipped.command(), *words, f"results={folder}"]
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log.txt"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        # Images of containers set it, and then each process of each run compiles all that it imports: 20 s.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        if cards is not None:
            environment["CUDA_VISIBLE_DEVICES"] = cards
        # It would take ten seconds to say so itself.
        finished = [
            path
            for path in folder.glob("records/*.json")
            if json.loads(path.read_text(encoding="utf-8"))["status"] == DONE
        ]
        command = ["true"] if finished else self.command
        with self._log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )

    def wait_for_step(self, step: int) -> None:
        """Wait until it has made so many steps, or has ended."""
        while self.process.poll() is None and not any(line["step"] >= step for line in self.lines()):
            time.sleep(0.2)

    def wait(self) -> None:
        """Wait for a good end. Raises `RuntimeError` with the end of its output otherwise."""
        if self.process.wait() != 0:
            raise RuntimeError(f"{' '.join(self.command)} ended with {self.process.returncode}:\n{self.tail()}")

    def tail(self) -> str:
        """Return the end of what it wrote."""
        return self._log.read_text(encoding="utf-8")[-4000:]

    @property
    def record(self) -> dict[str, Any]:
        [path] = (self.folder / "records").glob("*.json")
        return json.loads(path.read_text(encoding="utf-8"))

    @property
    def identity(self) -> dict[str, Any]:
        return self.record["identity"]

    @property
    def scores(self) -> Any:
        return self.record["scores"]["measurements"]

    def lines(self) -> list[dict[str, Any]]:
        """Return the whole curve: losses of every step, tokens and seconds between logs; empty before the first."""
        return [entry for path in (self.folder / "runs").glob("*/curves.jsonl") for entry in read_steps(path)]

    def losses(self) -> list[float]:
        """Return the loss of every step."""
        return [loss for line in self.lines() for loss in line.get("losses", [])]

    def rates(self) -> list[float]:
        """Return tokens a second between two logs, of the steps after the first quarter."""
        first = self.record["cost"]["steps"] // 4
        return [line["tokens"] / line["seconds"] for line in self.lines() if "tokens" in line and line["first"] > first]


def row_of(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a run: its outcome, cost, execution, loss curves, and how to make it again."""
    identity, origin, curves = record["identity"], record["origin"], record["curves"]
    row = {"run": name, "run_id": identity["run_id"], "model": identity["model"]["name"]}
    row |= {"method": identity["method"]["name"], "dtype": identity["dtype"], "status": record["status"]}
    row |= {key: record[key] for key in ("message", "cost", "execution") if record.get(key)}
    row["curves"] = {key: curves[key] for key in ("train_loss", "validation_loss") if key in curves}
    row["origin"] = {key: origin[key] for key in ("commit", "dirty", "versions", "command")}
    return row


def keep(table: Path, name: str, record: dict[str, Any]) -> None:
    """Put a run's row into the table, a JSON line a run in the order of their names; a run of that name is replaced."""
    with _TABLE:
        lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
        rows = {row["run"]: row for row in map(json.loads, lines)} | {name: row_of(name, record)}
        text = "".join(json.dumps(rows[run]) + "\n" for run in sorted(rows))
        write_text(table, text)


def speed_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the rate of runs of one kind, and the memory of each process.

    The rate is the mean of the runs' medians: a disturbance of some seconds, as hosts have them, does not move those.
    """
    record, rates = runs[0].record, [run.rates() for run in runs]
    low, *_, high = statistics.quantiles([rate for own in rates for rate in own], n=5)
    medians = [statistics.median(own) for own in rates]
    return {
        "tokens_per_second": statistics.mean(medians),
        "p20": low,
        "p80": high,
        "medians": medians,
        "rates": sum(map(len, rates)),
        "peak_GiB": [size / 2**30 for size in record["cost"]["peak_memory_bytes"]],
        "zero_stage": record["execution"]["zero_stage"],
        "world_size": record["execution"]["world_size"],
        "per_device_batch": record["execution"]["per_device_batch"],
        "accumulation": record["execution"]["accumulation"],
    }


def curve_difference(one: Run, other: Run) -> dict[str, Any]:
    """Return the largest relative difference of the losses of all steps, of the first ten, and of validation."""
    pairs = list(zip(one.losses(), other.losses(), strict=True))
    relative = [abs(a - b) / abs(a) for a, b in pairs]
    validated = [run.record["curves"]["validation_loss"][-1][1] for run in (one, other)]
    return {
        "steps": len(pairs),
        "largest": max(relative),
        "largest_of_first_ten": max(relative[:10]),
        "first_step_apart": next((step for step, value in enumerate(relative, 1) if value > 0), None),
        "median": statistics.median(relative),
        "last_validation_loss": validated,
        "validation": abs(validated[0] - validated[1]) / validated[0],
    }


def kill_one_process(run: Run, *, after_step: int) -> dict[str, Any]:
    """Kill the second process of a group once `after_step` is done; return how soon all was over, and what is said."""
    deadline = time.monotonic() + PATIENCE
    while not any(line["step"] >= after_step for line in run.lines()):
        if run.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run to be killed never reached step {after_step}:\n{run.tail()}")
        time.sleep(0.1)
    workers = [child for child in psutil.Process(run.process.pid).children(recursive=True) if _rank(child) is not None]
    [victim] = [worker for worker in workers if _rank(worker) == "1"]
    step = run.lines()[-1]["step"]
    victim.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    code = run.process.wait(PATIENCE)
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    found = {"killed_after_step": step, "seconds_until_all_gone": time.monotonic() - begun, "exit_code": code}
    return found | {"left": len(alive), "status": run.record["status"], "message": run.record["message"]}


def _rank(process: psutil.Process) -> str | None:
    """Return the rank of a worker of the group; None for anything else."""
    try:
        return process.environ().get("RANK") if "--worker" in process.cmdline() else None
    except psutil.Error:
        return None


def whole_adapter(run: Run) -> dict[str, Any]:
    """Return what the saved adapter holds against what was trained.

    Raises `RuntimeError` if anything is missing, empty or still zero: factors that start there must have left it.
    """
    from safetensors.torch import load_file

    [path] = (run.folder / "runs").glob("*/adapter/adapter_model.safetensors")
    tensors = load_file(path)
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0 or not tensor.isfinite().all()]
    still = [name for name, tensor in tensors.items() if tensor.dim() > 1 and not tensor.any()]
    if empty or still:
        raise RuntimeError(f"{path}: not whole {empty[:3]}, still zero {still[:3]}")
    trained = run.record["cost"]["trainable_parameters"]
    held = sum(tensor.numel() for tensor in tensors.values() if tensor.dim() > 1)
    if held != trained:
        raise RuntimeError(f"{path}: holds {held:,} elements of {trained:,} that were trained")
    return {"tensors": len(tensors), "elements": held, "trained": trained, "bytes": path.stat().st_size}
