"""When checkpoints are written, and that they are whole or not there.

A manifest of sizes and hashes is written last, and checked before use.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dual_lora.config import ConfigError
from dual_lora.distributed import processes
from dual_lora.records import UNREADABLE, file_sha256, set_aside, write_json

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
SECONDS = 120.0
_SHARE = 0.02  # of the time, at most


class ByTheClock(TrainerCallback):
    """Asks for a checkpoint two minutes after the last one, or after the beginning; later if they take long to write.

    A training of a minute writes none, and loses no more than that. Several processes ask when they log, so that they
    have something to say to each other every few steps only.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._took = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = time.monotonic()

    def written(self, begun: float) -> None:
        """Note that a checkpoint is there, whose writing began at that time."""
        self._last = time.monotonic()
        self._took = self._last - begun

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = time.monotonic() - self._last >= max(SECONDS, self._took / _SHARE)
        if processes.world_size() > 1:
            due = control.should_log and processes.largest(int(due)) > 0
        control.should_save = control.should_save or due


def seal(checkpoint: Path, layout: dict[str, Any] | None = None) -> None:
    """Write the manifest of a checkpoint folder. A folder without one was cut off while it was written.

    layout: how the state is spread over files (engine, ZeRO stage, processes); see `check_layout`.
    """
    files = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(checkpoint / MANIFEST, {"files": files, "layout": layout or {}})


def check_layout(checkpoint: Path, layout: dict[str, Any]) -> None:
    """Refuse to continue from shards that belong to other processes.

    Without DeepSpeed every checkpoint holds the whole optimizer and any number of processes continues from it. ZeRO's
    shards fit the same stage and number of processes only; the Trainer would go on with a fresh optimizer instead.
    Raises `ConfigError`.
    """
    written = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8")).get("layout") or layout
    if written != layout and "deepspeed" in (written["engine"], layout["engine"]):
        was, now = (
            "{engine}, zero_stage={zero_stage}, {processes} process(es)".format(**one) for one in (written, layout)
        )
        raise ConfigError(
            f"{checkpoint} was written under {was} and cannot be continued under {now}; {_who_continues(written)}, or "
            f"move {checkpoint.parent.parent} away to start anew"
        )


def _who_continues(layout: dict[str, Any]) -> str:
    if layout["engine"] != "deepspeed":
        return "continue it with launch=local, torchrun or fsdp, on any number of processes"
    stage, count = layout["zero_stage"], layout["processes"]
    return f"continue it with launch=deepspeed launch.zero_stage={stage} and {count} process(es)"


def fault(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file is as it was written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        layout = manifest.get("layout") or {}  # of a checkpoint that an older version wrote
        [layout[name] for name in ("engine", "zero_stage", "processes") if layout]
    except FileNotFoundError:
        return "it has no manifest: it was cut off while it was written"
    except UNREADABLE:
        return "its manifest is damaged"
    for name, (size, sha256) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if file_sha256(path) != sha256:
            return f"{name} does not have the contents that were written"
    return None


def latest_complete(folder: Path) -> Path | None:
    """Return the newest whole checkpoint. Damaged ones are set aside under another name, cut-off ones removed."""
    for path in reversed(_by_step(folder)):
        problem = fault(path)
        if problem is None:
            return path
        logger.warning("checkpoint of step %d is not used: %s", step_of(path), problem)
        if (path / MANIFEST).exists():
            set_aside(path)
        else:
            shutil.rmtree(path)
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints. Called after the newest was sealed, so a whole one always stays."""
    for path in _by_step(folder)[: -max(1, keep)]:
        # The manifest goes first: what a kill leaves behind halfway is then known to be incomplete.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)


def step_of(checkpoint: Path | None) -> int:
    """Return the optimizer step that a checkpoint was written after, which its name says; 0 for none."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _by_step(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted(found, key=step_of)


def start_from(folder: Path) -> Path | None:
    """Return the checkpoint that a training in `folder` continues from; None for a new one.

    One process looks for all, as damaged ones are moved away meanwhile.
    """
    return processes.from_main(lambda: latest_complete(folder / "checkpoints"))


def resume_step(folder: Path) -> int:
    """Return the optimizer step that a training in `folder` would continue from; 0 for a new one."""
    return step_of(start_from(folder))
