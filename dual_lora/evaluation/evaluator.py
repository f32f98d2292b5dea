"""Scoring a model on a set of items with every scoring of the task. A killed process loses at most two batches."""

from __future__ import annotations

import dataclasses
import glob
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from dual_lora import methods, models, records
from dual_lora.config import RunConfig, evaluation_batches
from dual_lora.distributed import processes, watchdog
from dual_lora.evaluation.passes import passes_for
from dual_lora.evaluation.prediction_lines import RANKINGS, in_order, line, read_values, readings, sha256
from dual_lora.records import per_item
from dual_lora.tasks.base import Example, Split, Task


@dataclasses.dataclass
class Evaluator:
    """Scores models on one task under one protocol; replies are kept in `folder`."""

    task: Task
    tokenizer: Any
    config: RunConfig
    folder: Path
    known: int = dataclasses.field(default=0, init=False)  # predictions found there, of an interrupted evaluation
    batch: int | None = dataclasses.field(default=None, init=False)  # sequences at a time, once it is known
    graphs: dict[str, Any] = dataclasses.field(default_factory=dict, init=False)  # of each predictions file, what ran
    _taken_over: set[str] = dataclasses.field(default_factory=set, init=False)  # checkpoints

    def measure(
        self, model: torch.nn.Module, examples: Sequence[Example], *, split: Split, checkpoint: str
    ) -> list[dict[str, Any]]:
        """Return measurements (see the record's `scores.measurements`) for every scoring of the task.

        The update is merged into the weights while this runs, so an adapted model decodes as fast as its base.
        """
        measurements: list[dict[str, Any]] = []
        with methods.merged(model) as plain:
            found = {
                scoring: self._values(plain, examples, scoring, per_item.predictions(checkpoint, split, scoring))
                for scoring in self.task.scorings
            }
        for scoring, part in found.items():
            values = _gathered(part)
            if processes.is_main():
                part.write_whole(values)
            for score in self.task.score(readings(self.task, values, examples, scoring), examples, scoring):
                measurements.append({"split": split, "checkpoint": checkpoint, **dataclasses.asdict(score)})
        processes.barrier()  # the predictions are written
        return measurements

    def take_over(self, made: str, checkpoint: str) -> None:
        """Use the predictions of checkpoint `made` for another one with the same weights."""
        self._taken_over.add(checkpoint)
        if processes.is_main():
            for path in sorted(self.folder.glob(f"{glob.escape(made)}.*.jsonl")):
                shutil.copyfile(path, path.with_name(checkpoint + path.name.removeprefix(made)))
        processes.barrier()

    def _values(self, model: Any, examples: Sequence[Example], scoring: str, name: str) -> _Kept:
        """Score this process's share of the items: replies, or for rankings the candidates' log-likelihoods."""
        ranks = scoring in RANKINGS
        kept = processes.from_main(
            lambda: _Kept.read(self.folder / f"{name}.jsonl", len(examples), list if ranks else str)
        )
        if ranks:  # a line that lacks a candidate is no item's
            count = {index: len(self.task.ranking(examples[index], scoring)[1]) for index in kept.values}
            kept.values = {index: row for index, row in kept.values.items() if len(row) == count[index]}
        self.known += 0 if name.partition(".")[0] in self._taken_over else len(kept.values)
        mine = kept.share(processes.rank(), processes.world_size())
        self.batch = batch_size = self._batch_size(model, scoring)
        with kept, processes.computing_together(model) as callable_model:
            if ranks:
                from dual_lora.evaluation import ranking

                passes = passes_for(callable_model, self.config.launch.graphs)
                asked = [self.task.ranking(examples[index], scoring) for index in mine]
                ranking.rank(
                    callable_model,
                    self.tokenizer,
                    [prompt for prompt, _ in asked],
                    [candidates for _, candidates in asked],
                    batch_size=batch_size,
                    on_batch=kept.add,
                    passes=passes,
                )
                self.graphs[name] = passes.report()
                return kept
            from dual_lora.evaluation import generation, static_decoding

            static = static_decoding.decoding_for(callable_model, self.config.launch.graphs)
            generation.generate(
                callable_model,
                self.tokenizer,
                [self.task.render(examples[index], training=False).prompt for index in mine],
                self.config.protocol.decoding,
                batch_size=batch_size,
                complete=self._complete([examples[index] for index in mine]),
                on_batch=kept.add,
                static=static,
            )
            self.graphs[name] = {"replays": static.replays if static is not None else 0}
        return kept

    def _complete(self, examples: Sequence[Example]) -> Callable[[int, str], bool] | None:
        """Return when a reply needs no further token; None for a task whose reading needs the whole reply."""
        if not self.task.settles_early:
            return None
        return lambda index, reply: self.task.complete(reply, examples[index])

    def _batch_size(self, model: torch.nn.Module, scoring: str) -> int:
        launch, device = self.config.launch, next(model.parameters()).device.type
        parameters = models.count_parameters(self.config.model, self.task.head)
        if scoring in RANKINGS:
            return evaluation_batches.candidates(launch, parameters=parameters, device=device)
        beams = self.config.protocol.decoding.beams
        return evaluation_batches.prompts(launch, beams, parameters=parameters, device=device)


class _Kept:
    """Replies (or candidate scores) of a set of items by index, appended to a file batch by batch, with a bar.

    In a group each process appends to its own file. All are read when an interrupted evaluation continues, with any
    number of processes, and one complete file is left in the end.
    """

    def __init__(self, path: Path, items: int, values: dict[int, Any]) -> None:
        self.path, self.items, self.values = path, items, values
        self._mine: list[int] = []

    @staticmethod
    def read(path: Path, items: int, kind: type = str) -> _Kept:
        """Read the values of this kind that are there and write them to one file."""
        values: dict[int, Any] = {}
        for file in [path, *_parts(path)]:
            values |= read_values(file)
        known = {index: value for index, value in values.items() if index < items and isinstance(value, kind)}
        kept = _Kept(path, items, known)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept._write(kept.values)
        return kept

    def share(self, rank: int, processes: int) -> list[int]:
        """Return the items that this process has to do: every n-th of those that are missing."""
        missing = [index for index in range(self.items) if index not in self.values]
        self._mine = missing[rank::processes]
        return self._mine

    def __enter__(self) -> _Kept:
        path = self.path.with_suffix(f".part-{processes.rank()}.jsonl") if processes.world_size() > 1 else self.path
        self._file = path.open("a", encoding="utf-8")
        name = self.path.stem.rpartition(".")[2]
        self._bar = tqdm(
            total=len(self._mine),
            desc=name,
            unit="item",
            mininterval=0.5,
            disable=None if processes.is_main() else True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()
        watchdog.rest()

    def add(self, places: Sequence[int], values: Sequence[Any]) -> None:
        """Keep the values of items, which are given by their place in this process's share."""
        for place, value in zip(places, values, strict=True):
            index = self._mine[place]
            self.values[index] = value
            self._file.write(line(index, value) + "\n")
        self._file.flush()
        self._bar.update(len(places))
        watchdog.progress()

    def write_whole(self, values: Sequence[Any]) -> None:
        """Write one file with the value of every item, in order."""
        self._write(dict(enumerate(values)))

    def _write(self, values: dict[int, Any]) -> None:
        text = "".join(line(index, value) + "\n" for index, value in values.items())
        with records.replacing(self.path) as part:
            part.write_text(text, encoding="utf-8")
        for file in _parts(self.path):
            file.unlink()


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}.part-*.jsonl"))


def _gathered(kept: _Kept) -> list[Any]:
    """Return the values of all items in order, from all processes."""
    values: dict[int, Any] = {}
    for part in processes.gather(kept.values):
        values |= part
    return [values[index] for index in range(kept.items)]


def predictions_sha256(folder: Path) -> dict[str, str]:
    """Return the hash of each predictions file, its lines in the order of the items; not of files that are none."""
    hashes = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            hashes[path.stem] = sha256(in_order(path))
        except records.UNREADABLE:
            continue  # what this run measured was written whole just now
    return hashes
