"""What differs between a language model and a classifier: its rows, what is followed in training, how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback

from dual_lora.tasks.base import Example
from dual_lora.tasks.splits import Items

Rows = list[dict[str, Any]]


class Pipeline(Protocol):
    """The part of a run that depends on the task's type."""

    notes: list[str]
    graphs: dict[str, Any]  # what the record says of the CUDA graphs of each part of the evaluation

    @property
    def known(self) -> int:
        """How many predictions an interrupted evaluation had left; the seconds of this one do not include theirs."""
        ...

    @property
    def eval_batch(self) -> int | None:
        """How many sequences (beams, candidates, texts) were scored at a time; None before any was."""
        ...

    def rows(self, examples: Sequence[Example], what: str) -> Rows:
        """Encode examples for training; the effect of the cut-off goes into `notes`."""
        ...

    def collator(self) -> Callable[[list[Any]], dict[str, torch.Tensor]]: ...

    def check_base(self, model: torch.nn.Module, items: Items) -> None:
        """Before training, find a base that is not what it should be. Raises `gate.GateError`."""
        ...

    def callbacks(self, items: Items, resume_step: Callable[[], int]) -> list[TrainerCallback]:
        """Return what follows training in addition to the loss."""
        ...

    def measure(
        self, model: torch.nn.Module, items: Items, selected: Mapping[str, Path] | None
    ) -> list[dict[str, Any]]:
        """Return measurements of the base model (`selected` is None) or of every checkpoint the protocol reports."""
        ...

    def curves(self) -> dict[str, list[list[float]]]: ...
