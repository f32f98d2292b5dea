"""Models that write: prompt and answer are one text, and checkpoints are scored by what they write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import DataCollatorForSeq2Seq, TrainerCallback

from dual_lora import gate, methods, processes
from dual_lora.config import RunConfig
from dual_lora.evaluation import Evaluator
from dual_lora.examples import Items
from dual_lora.heads import Rows
from dual_lora.tasks.base import Example, Task
from dual_lora.tasks.encoding import IGNORED, encode_all


class CausalWork:
    """See `dual_lora.heads.HeadWork`."""

    def __init__(self, task: Task, tokenizer: Any, config: RunConfig, folder: Path) -> None:
        self.task, self.tokenizer, self.config = task, tokenizer, config
        self.notes: list[str] = []
        self._evaluator = Evaluator(task, tokenizer, config, folder / "predictions")

    def rows(self, examples: Sequence[Example], what: str) -> Rows:
        prompts = [self.task.render(example, training=True) for example in examples]
        encoded = encode_all(prompts, self.tokenizer, self.config.protocol, self.config.recipe.max_length_tokens)
        counts = encoded.counts
        if counts["over_length"]:
            self.notes.append(
                f"{what}: {counts['over_length']} of {counts['examples']} examples over the cut-off "
                f"({counts['left_out']} left out, {counts['answer_cut']} cut)"
            )
        return [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in encoded.rows]

    def collator(self) -> Callable[[list[Any]], dict[str, torch.Tensor]]:
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # padding is masked and has no loss: any id serves
        return DataCollatorForSeq2Seq(self.tokenizer, padding=True, pad_to_multiple_of=8, label_pad_token_id=IGNORED)

    def callbacks(self, items: Items, resume_step: Callable[[], int]) -> list[TrainerCallback]:
        return []

    def measure(
        self, model: torch.nn.Module, items: Items, selected: Mapping[str, Path] | None
    ) -> list[dict[str, Any]]:
        model.eval()
        self._gate(model, items)
        if selected is None:
            return self._evaluator.measure(model, items.test, split="test", checkpoint="base")
        # "last" comes first: its weights are in memory, and a later checkpoint replaces them.
        wanted = dict.fromkeys(["last", self.config.protocol.checkpoint, *self.config.protocol.also_report])
        measurements = []
        for name in [name for name in wanted if name == "last" or name in selected]:
            if name != "last":
                methods.load_trainable_state(model, load_file(selected[name], device="cpu"))
            measurements += self._evaluator.measure(model, items.test, split="test", checkpoint=name)
        return measurements

    def _gate(self, model: torch.nn.Module, items: Items) -> None:
        """Find a fault that would be measured instead of the model before hours of evaluation, not after them."""
        if processes.world_size() == 1:  # a partitioned model computes only together; the same code was checked alone
            gate.check(
                model,
                self.tokenizer,
                self.task,
                items.test,
                self.config.protocol,
                # Full fine-tuning may lose the prompts' English, and has no adapter to switch off.
                pretrained=self.config.model.source != "random" and self.config.method.trains in ("nothing", "adapter"),
            )

    def curves(self) -> dict[str, list[list[float]]]:
        return {}
