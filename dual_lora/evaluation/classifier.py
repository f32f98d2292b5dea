"""Classifiers: every epoch is scored and one is chosen afterwards, both as published and on held-out examples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from dual_lora import methods, records
from dual_lora.config import RunConfig, evaluation_batches
from dual_lora.distributed import processes
from dual_lora.evaluation import classification
from dual_lora.evaluation.epoch_scores import EpochScores, Part
from dual_lora.evaluation.pipeline import Rows
from dual_lora.records import per_item
from dual_lora.tasks.base import ClassificationTask, Example, Reading
from dual_lora.tasks.splits import Items


class ClassificationPipeline:
    """See `dual_lora.evaluation.pipeline.Pipeline`."""

    def __init__(self, task: ClassificationTask, tokenizer: Any, config: RunConfig, folder: Path, dtype: str) -> None:
        self.task, self.tokenizer, self.config = task, tokenizer, config
        self.notes: list[str] = []
        self.graphs: dict[str, Any] = {}
        self.known = 0  # predictions of an epoch are never resumed
        self._run_folder, self._folder = folder, folder / "epochs"
        self._autocast = torch.bfloat16 if dtype == "bfloat16" else None
        self._epochs: EpochScores | None = None
        self.eval_batch = evaluation_batches.classified(config.launch)

    def rows(self, examples: Sequence[Example], what: str) -> Rows:
        rows, counts = classification.encode(
            self.task,
            examples,
            self.tokenizer,
            self.config.protocol.max_length_tokens or self.config.recipe.max_length_tokens,
        )
        if counts["truncated"]:
            self.notes.append(f"{what}: {counts['truncated']} of {counts['examples']} examples cut to the length limit")
        return rows

    def collator(self) -> classification.Collator:
        return classification.Collator(self.tokenizer, few_shapes=processes.uses_gpu(self.config.launch.device))

    def check_base(self, model: torch.nn.Module, items: Items) -> None:
        """Nothing: an encoder whose head is new says nothing that weights could be judged by."""

    def callbacks(self, items: Items, resume_step: Callable[[], int]) -> list[TrainerCallback]:
        self._epochs = self._following(items)
        self._epochs.forget_after(resume_step())
        return [self._epochs]

    def _following(self, items: Items) -> EpochScores:
        parts = {"dev": Part(items.test, self.rows(items.test, "development"))} if items.test else {}
        if items.held_out:
            parts["heldout"] = Part(items.held_out, self.rows(items.held_out, "held-out"))
        shown: str = self.config.protocol.checkpoint
        # MRPC, RTE and STS-B start from the weights of an MNLI run's headline epoch (`runs/warm_start.py`).
        keep = {shown: records.weights_file(self._run_folder, shown)} if shown != "last" else {}
        epochs = EpochScores(
            self._folder,
            self.task,
            parts,
            self.collator(),
            batch_size=self.eval_batch,
            autocast=self._autocast,
            keep_weights=keep,
            weights_of=methods.trainable_state,
        )
        epochs.graphs = self.config.launch.graphs
        return epochs

    def measure(
        self, model: torch.nn.Module, items: Items, selected: Mapping[str, Path] | None
    ) -> list[dict[str, Any]]:
        following = self._epochs or self._following(items)
        if selected is None:
            following.forget_after(0)
            following.measure(model, 0)
            return self._scores(following.chosen()["last"].logits, items, "base")
        self.graphs["epochs"] = following.close_graphs()
        if self._epochs is None:  # an earlier process finished training
            following.forget_after(None)
            self._epochs = following
        wanted = dict.fromkeys(["last", self.config.protocol.checkpoint, *self.config.protocol.also_report])
        chosen = following.chosen()
        measurements = []
        for name in [name for name in wanted if name in chosen]:
            measurements += self._scores(chosen[name].logits, items, name)
        return measurements

    def _scores(self, logits: Mapping[str, Any], items: Items, checkpoint: str) -> list[dict[str, Any]]:
        measurements = []
        for part, split, examples in (("dev", "test", items.test), ("heldout", "validation", items.held_out)):
            if part in logits:
                readings = classification.readings(logits[part], self.task.labels)
                self._keep(readings, checkpoint, split)
                for score in self.task.score(readings, examples, self.task.scorings[0]):
                    measurements.append({"split": split, "checkpoint": checkpoint, **dataclasses.asdict(score)})
        return measurements

    def _keep(self, readings: Sequence[Reading], checkpoint: str, split: str) -> None:
        """Write the predictions as a language model's are, for the hash in the record."""
        if processes.is_main():
            name = per_item.predictions(checkpoint, split, self.task.scorings[0])
            lines = (json.dumps({"index": index, "value": value}) + "\n" for index, value in enumerate(readings))
            records.write_text(self._run_folder / "predictions" / f"{name}.jsonl", "".join(lines))

    def curves(self) -> dict[str, list[list[float]]]:
        return self._epochs.curves() if self._epochs else {}
