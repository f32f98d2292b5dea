"""Choosing an epoch after training from every epoch's scores: the published choice and an honest one in one run.

    epochs = EpochScores(folder, task, {"dev": Part(...), "heldout": Part(...)}, collator, batch_size=64)
    epochs.forget_after(step)                   # 0, or the step of the checkpoint that training continues from
    Trainer(..., callbacks=[..., epochs])       # measures whenever the Trainer evaluates
    epochs.chosen()                             # {"last": Epoch, "best_dev": Epoch, "best_heldout": Epoch}

`best_dev` is the epoch with the highest score on the development set itself, as the GLUE rows of the LoRA paper were
chosen (appendix D): optimistic by construction. `best_heldout` is chosen on training examples that were held out. All
are then reported on the development set.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dual_lora.config import ConfigError
from dual_lora.distributed import processes
from dual_lora.evaluation.classification import ClassificationTask, Collator, logits_of, predict, readings
from dual_lora.evaluation.passes import Passes, passes_for
from dual_lora.records import read_json, replacing, write_json
from dual_lora.tasks.base import Example
from dual_lora.training.graphs import GraphedCalls
from dual_lora.training.recorders import on_a_stream

PARTS = ("dev", "heldout")


@dataclass(frozen=True)
class Part:
    """A set that every epoch is measured on."""

    examples: Sequence[Example]
    rows: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Epoch:
    """One measured epoch: after which optimizer step, the scores it is chosen by, the logits (items, labels)."""

    step: int
    scores: Mapping[str, float | None]
    logits: Mapping[str, np.ndarray]


class EpochScores(TrainerCallback):
    """Measures the parts whenever the Trainer evaluates, and keeps scores and logits (no weights) in a folder.

    The choice is made from the files, so a resumed run makes the same choice as an uninterrupted one.

    parts: "dev" (not in a trial, which must not see it), and "heldout" if the protocol holds out a part of the training
        set.
    keep_weights: checkpoint ("best_dev", "best_heldout") -> safetensors file, for a checkpoint whose weights are kept
        too: the headline's. Written whenever it improves.
    weights_of: gives a model's trained weights (`methods.trainable_state`); called by every process.
    Raises `ValueError` for another part, or none.
    """

    graphs = "off"  # `launch.graphs`: every epoch has the same batches, replayed in a training whose steps are graphs

    def __init__(
        self,
        folder: Path,
        task: ClassificationTask,
        parts: Mapping[str, Part],
        collator: Collator,
        *,
        batch_size: int = 64,
        autocast: torch.dtype | None = None,
        keep_weights: Mapping[str, Path] | None = None,
        weights_of: Callable[[torch.nn.Module], dict[str, torch.Tensor]] | None = None,
    ) -> None:
        if not parts or not set(parts) <= set(PARTS):
            raise ValueError(f"parts {sorted(parts)}: legal are dev, heldout or both")
        self.folder, self._task, self._parts, self._collator = folder, task, parts, collator
        self._batch_size, self._autocast = batch_size, autocast
        self._keep_weights, self._weights_of = keep_weights or {}, weights_of
        self._scores: dict[int, dict[str, float | None]] = {}
        self._passes = Passes()
        self._computed: GraphedCalls | None = None

    def forget_after(self, step: int | None) -> None:
        """Keep what was measured up to this optimizer step (0: nothing, None: everything) and remove the rest.

        Raises `ConfigError` for a damaged file: without its weights an epoch cannot be measured again.
        """
        self._scores = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._scores = processes.from_main(lambda: self._kept_until(step))

    def _kept_until(self, step: int | None) -> dict[int, dict[str, float | None]]:
        scores = {}
        measured = [path for path in self.folder.glob("*.json") if path.stem.isdigit()]
        for path in sorted(measured, key=lambda path: int(path.stem)):
            if (step is None or int(path.stem) <= step) and path.with_suffix(".npz").exists():
                scores[int(path.stem)] = read_json(path, self._parsed, self._fix) or {}
                self._logits(int(path.stem))
            else:
                path.unlink()
                path.with_suffix(".npz").unlink(missing_ok=True)
        return scores

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.measure(given["model"], state.global_step, write=state.is_world_process_zero)

    def close_graphs(self) -> dict[str, Any]:
        """Give the memory of all graphs back, and return what a record holds of them."""
        if self._computed is not None:
            self._computed.close()
        return self._passes.report()

    def measure(self, model: torch.nn.Module, step: int, *, write: bool = True) -> None:
        """Measure all parts after `step` optimizer steps. A step that is already measured is left as it is."""
        if step in self._scores:
            return
        before = {name: self._best_step(part) for name, part in self._choices()}
        if self._computed is None and on_a_stream():
            self._passes = passes_for(model, self.graphs)
            self._computed = logits_of(model, self._autocast, self._passes) if self._passes.few_shapes else None
        logits = {
            name: predict(model, self._collator, part.rows, self._batch_size, self._autocast, self._computed)
            for name, part in self._parts.items()
        }
        self._scores[step] = {
            name: self._task.selection_score(readings(values, self._task.labels), self._parts[name].examples)
            for name, values in logits.items()
        }
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
            np.savez(self.folder / f"{step}.npz", **logits)
            write_json(self.folder / f"{step}.json", self._scores[step])
        for name, part in self._choices():
            if self._best_step(part) != before[name] and name in self._keep_weights and self._weights_of is not None:
                weights = self._weights_of(model)
                if write:
                    with replacing(self._keep_weights[name]) as place:
                        save_file(weights, place)
        processes.barrier()  # now what the main process has written may be read

    def _choices(self) -> list[tuple[str, str]]:
        return [(f"best_{part}", part) for part in PARTS if part in self._parts]

    def _best_step(self, part: str) -> int | None:
        """The step with the highest score: the first of equals; an undefined score counts as lowest."""
        best: tuple[float, int] | None = None
        for step in sorted(self._scores):
            score = self._scores[step][part]
            value = -math.inf if score is None else score
            if best is None or value > best[0]:
                best = (value, step)
        return best[1] if best else None

    def curves(self) -> dict[str, list[list[float]]]:
        """Return the [step, score] curve of each part, for the record; undefined scores are left out."""
        return {
            f"{part}_score": [
                [step, value] for step in sorted(self._scores) if (value := self._scores[step][part]) is not None
            ]
            for part in self._parts
        }

    def chosen(self) -> dict[str, Epoch]:
        """Return checkpoint name -> epoch: "last", "best_dev" and, with a held-out part, "best_heldout".

        Raises `ValueError` if nothing was measured.
        """
        if not self._scores:
            raise ValueError("no epoch was measured; the Trainer has to evaluate at least once, after the last step")
        steps = {"last": max(self._scores), **{name: self._best_step(part) for name, part in self._choices()}}
        return {name: self._epoch(step) for name, step in steps.items() if step is not None}

    @property
    def _fix(self) -> str:
        return f"move {self.folder.parent} away to train anew"

    def _parsed(self, values: Any) -> dict[str, float | None]:
        return {part: None if values[part] is None else float(values[part]) for part in self._parts}

    def _logits(self, step: int) -> dict[str, np.ndarray]:
        path = self.folder / f"{step}.npz"
        try:
            with np.load(path) as file:
                return {part: file[part] for part in self._parts}
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}); {self._fix}") from None

    def _epoch(self, step: int) -> Epoch:
        return Epoch(step, self._scores[step], self._logits(step))
