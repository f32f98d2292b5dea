"""Language models: prompt and answer are one text, and checkpoints are scored by what they generate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from dual_lora import methods, models
from dual_lora.config import RunConfig, evaluation_batches
from dual_lora.distributed import processes
from dual_lora.evaluation import gate, generation, validation
from dual_lora.evaluation.evaluator import Evaluator
from dual_lora.evaluation.passes import passes_for
from dual_lora.evaluation.pipeline import Rows
from dual_lora.records import file_sha256
from dual_lora.tasks.base import Example, Score, Task
from dual_lora.tasks.batching import padded
from dual_lora.tasks.encoding import IGNORED, encode_all, prompt_ids
from dual_lora.tasks.padding import rounded_length
from dual_lora.tasks.splits import Items
from dual_lora.training.callbacks import Diverged
from dual_lora.training.loss import loss_positions, next_token_labels


class Collator:
    """Pads a batch to its longest row, rounded up to 8: int64 tensors (rows, length), `shift_labels` among them.

    The Trainer counts `shift_labels` as they are. For `labels` it decides by the model's name which of them count.

    few_shapes: round up by `tasks.padding`, and name the places that have a label, `loss_positions`.
    """

    def __init__(self, tokenizer: Any, few_shapes: bool = False) -> None:
        self._tokenizer, self._few_shapes = tokenizer, few_shapes

    def __call__(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        length = rounded_length(longest) if self._few_shapes else 0
        if not longest <= length <= self._tokenizer.model_max_length:
            length = -(-longest // 8) * 8
        fill = {"input_ids": self._tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        batch = padded(rows, length, fill, left=self._tokenizer.padding_side == "left")
        batch = {**batch, "shift_labels": next_token_labels(batch["labels"])}
        return {**batch, "loss_positions": loss_positions(batch["shift_labels"])} if self._few_shapes else batch


class CausalLMPipeline:
    """See `dual_lora.evaluation.pipeline.Pipeline`."""

    def __init__(self, task: Task, tokenizer: Any, config: RunConfig, folder: Path, dtype: str) -> None:
        self.task, self.tokenizer, self.config = task, tokenizer, config
        self._autocast = torch.bfloat16 if dtype == "bfloat16" else None
        self.notes: list[str] = []
        self._folder = folder
        self._evaluator = Evaluator(task, tokenizer, config, folder / "predictions")
        self.graphs = self._evaluator.graphs

    @property
    def known(self) -> int:
        return self._evaluator.known

    @property
    def eval_batch(self) -> int | None:
        return self._evaluator.batch

    def rows(self, examples: Sequence[Example], what: str) -> Rows:
        rows, counts = self._encoded(examples)
        if counts["over_length"]:
            self.notes.append(
                f"{what}: {counts['over_length']} of {counts['examples']} examples over the cut-off "
                f"({counts['left_out']} left out, {counts['answer_cut']} cut)"
            )
        return rows

    def _encoded(self, examples: Sequence[Example]) -> tuple[Rows, dict[str, int]]:
        prompts = [self.task.render(example, training=True) for example in examples]
        rows, counts = encode_all(prompts, self.tokenizer, self.config.protocol, self.config.recipe.max_length_tokens)
        return [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows], counts

    def collator(self) -> Callable[[list[Any]], dict[str, torch.Tensor]]:
        self._set_padding_token()
        return Collator(self.tokenizer, few_shapes=processes.uses_gpu(self.config.launch.device))

    def _set_padding_token(self) -> None:
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # padding is masked and has no loss: any id will do

    def check_base(self, model: torch.nn.Module, items: Items) -> None:
        """Before hours of training, find weights that are not loaded, or a prompt that is not what is evaluated.

        Raises `gate.GateError`, and `ValueError` for a reply for which the model has no room. No weight is trained yet,
        so a base that will be trained itself is judged as well.
        """
        if "generate" in self.task.scorings:
            asked = [self.task.render(example, training=False).prompt for example in items.test]
            rows = [prompt_ids(prompt, self.tokenizer) for prompt in asked]
            generation.check_fits(model, rows, self.config.protocol.decoding.max_new_tokens)
        examples = items.test or items.validation or items.train
        if not processes.is_partitioned(model):
            known = models.is_pretrained(self.config.model)
            with self._computing(model):
                gate.check_base(model, self.tokenizer, self.task, examples, self.config.protocol, pretrained=known)

    def callbacks(self, items: Items, resume_step: Callable[[], int]) -> list[TrainerCallback]:
        return []

    def measure(
        self, model: torch.nn.Module, items: Items, selected: Mapping[str, Path] | None
    ) -> list[dict[str, Any]]:
        model.eval()
        with self._computing(model):
            return self._measure(model, items, selected)

    def _computing(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Compute as training did, also in a process that did not train: all scores of a run have the same rounding."""
        if self._autocast is None:
            return nullcontext()
        # Not cached: weights change in between, by merging or another checkpoint.
        return torch.autocast(next(model.parameters()).device.type, self._autocast, cache_enabled=False)

    def _measure(
        self, model: torch.nn.Module, items: Items, selected: Mapping[str, Path] | None
    ) -> list[dict[str, Any]]:
        measurements = self._validate(model, items, "base" if selected is None else "last")
        if not items.test:
            return measurements
        self._gate(model, items)
        if selected is None:
            return self._evaluator.measure(model, items.test, split="test", checkpoint="base") + measurements
        # "last" comes first: its weights are in memory, and a later checkpoint replaces them.
        wanted = dict.fromkeys(["last", self.config.protocol.checkpoint, *self.config.protocol.also_report])
        for name in [name for name in wanted if name == "last" or name in selected]:
            if name != "last":
                if file_sha256(selected[name]) == file_sha256(self._folder / "last.safetensors"):
                    self._evaluator.take_over("last", name)  # the last step was the best: the same weights
                else:
                    methods.load_trainable_state(model, load_file(selected[name], device="cpu"))
            measurements += self._evaluator.measure(model, items.test, split="test", checkpoint=name)
        return measurements

    def _validate(self, model: torch.nn.Module, items: Items, checkpoint: str) -> list[dict[str, Any]]:
        """Measure the weights in memory on the validation examples. No text is generated; nothing is chosen by it."""
        if not items.validation:
            return []
        rows, _ = self._encoded(items.validation)
        self.tokenizer.padding_side = "right"  # learned positions (GPT-2) must start at 0
        self._set_padding_token()
        passes = passes_for(model, self.config.launch.graphs)
        found, each = validation.losses(
            model,
            rows,
            Collator(self.tokenizer, few_shapes=passes.few_shapes),
            batch_tokens=evaluation_batches.validation_tokens(
                parameters=models.count_parameters(self.config.model, self.task.head),
                device=next(model.parameters()).device.type,
            ),
            passes=passes,
        )
        self.graphs[f"{checkpoint}.validation.loss"] = passes.report()
        if not all(map(math.isfinite, found.values())):
            raise Diverged(f"the validation loss of checkpoint {checkpoint!r} is {found['loss']}: no number is of use")
        score = Score("all", "loss", len(rows), found, per_item={"loss": each})
        return [{"split": "validation", "checkpoint": checkpoint, **dataclasses.asdict(score)}]

    def _gate(self, model: torch.nn.Module, items: Items) -> None:
        """Before hours of evaluation, find a fault that would be measured instead of the model."""
        if processes.world_size() == 1:  # a partitioned model needs all processes; the same code is checked with one
            # Full fine-tuning may unlearn the prompts' English, and has no adapter to disable.
            unchanged = self.config.method.trains in ("nothing", "adapter")
            gate.check(
                model,
                self.tokenizer,
                self.task,
                items.test,
                self.config.protocol,
                dtype=self._autocast or torch.float32,
                pretrained=unchanged and models.is_pretrained(self.config.model),
            )

    def curves(self) -> dict[str, list[list[float]]]:
        return {}
