"""Scoring a model on a set of items, in every way the task asks for. A kill in the middle loses at most one batch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from dual_lora import methods
from dual_lora.config import RunConfig
from dual_lora.tasks.base import Example, Reading, Split, Task

_GENERATION_BATCH = {"cpu": 16, "cuda": 128}


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Scores models on one task under one protocol; replies are kept in `folder`."""

    task: Task
    tokenizer: Any
    config: RunConfig
    folder: Path

    def measure(
        self, model: torch.nn.Module, examples: Sequence[Example], *, split: Split, checkpoint: str
    ) -> list[dict[str, Any]]:
        """Return measurements (see the record's `scores.measurements`) for every scoring of the task.

        The update is merged into the weights meanwhile, so an adapted model decodes as fast as its base.
        """
        measurements: list[dict[str, Any]] = []
        with methods.merged(model) as plain:
            for scoring in self.config.task.scorings or self.config.protocol.scorings:
                kept = _Kept(self.folder / f"{checkpoint}.{split}.{scoring}.jsonl", len(examples), scoring)
                with kept:
                    readings = self._readings(plain, examples, scoring, kept)
                for score in self.task.score(readings, examples, scoring):
                    measurements.append({"split": split, "checkpoint": checkpoint, **dataclasses.asdict(score)})
        return measurements

    def _readings(
        self, model: torch.nn.Module, examples: Sequence[Example], scoring: str, kept: _Kept
    ) -> Sequence[Reading]:
        if scoring in ("likelihood", "cloze"):
            from dual_lora import ranking

            return ranking.readings(
                self.task, model, self.tokenizer, examples, scoring, batch_size=self._batch_size(model), kept=kept
            )
        from dual_lora import generation

        replies = generation.generate(
            model,
            self.tokenizer,
            [self.task.render(example, training=False).prompt for example in examples],
            self.config.protocol.decoding,
            batch_size=self._batch_size(model),
            complete=self._complete(examples),
            on_batch=kept.add,
            progress=kept.progress,
            known=kept.values,
        )
        return [self.task.read(reply, example) for reply, example in zip(replies, examples, strict=True)]

    def _complete(self, examples: Sequence[Example]) -> Callable[[int, str], bool] | None:
        """Tasks whose reading is settled before the model stops say so: the rest of the reply is not generated."""
        settled = getattr(self.task, "complete", None)
        return None if settled is None else lambda index, reply: settled(reply, examples[index])

    def _batch_size(self, model: torch.nn.Module) -> int:
        asked = self.config.launch.eval_batch
        if asked is not None:
            return asked
        device = next(model.parameters()).device.type
        return max(1, _GENERATION_BATCH.get(device, 16) // self.config.protocol.decoding.beams)


class _Kept:
    """Replies (or candidate scores) of a set of items by index, appended to a file batch by batch, with a bar."""

    def __init__(self, path: Path, items: int, name: str) -> None:
        self.path, self.items, self.name = path, items, name
        self.values: dict[int, Any] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    break  # the line that was being written when the process died
                self.values[entry["index"]] = entry["value"]

    def __enter__(self) -> _Kept:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps({"index": i, "value": v}, ensure_ascii=False) + "\n" for i, v in self.values.items())
        self.path.write_text(text, encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._bar = tqdm(total=self.items, initial=len(self.values), desc=self.name, unit="item", mininterval=0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()

    def add(self, indices: Sequence[int], values: Sequence[Any]) -> None:
        for index, value in zip(indices, values, strict=True):
            self.values[index] = value
            self._file.write(json.dumps({"index": index, "value": value}, ensure_ascii=False) + "\n")
        self._file.flush()

    def progress(self, done: int, total: int) -> None:
        self._bar.update(done - self._bar.n)


def predictions_sha256(folder: Path) -> dict[str, str]:
    """Return the hash of each predictions file, its lines in the order of the items."""
    hashes = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = sorted(path.read_text(encoding="utf-8").splitlines(), key=lambda line: json.loads(line)["index"])
        hashes[path.stem] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return hashes
