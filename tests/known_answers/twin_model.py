"""The models of the twins: bases on disk, heads and adapters drawn by hand, and what is measured of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from dual_lora import DualLoraConfig
from dual_lora.models.tiny_tokenizer import tiny_tokenizer
from tests.known_answers.twin import Losses, Recipe, Row, Trace, padded, row_losses, token_losses, train
from tests.known_answers.twin_cells import STEPS, Cell
from tests.known_answers.twin_data import write_commonsense, write_e2e

SPREAD = {True: 0.2, False: 0.1}  # standard deviation of the weights, with a head and without: replies must differ


def write(cell: Cell, folder: Path) -> tuple[Path, Path]:
    """Write the base model and the data of a cell; return their folders."""
    base, data = folder / "base", folder / "data"
    tokenizer = tiny_tokenizer(cell.family, max_length=128 if cell.family in ("gpt2", "roberta") else 512)
    tokenizer.save_pretrained(base)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    kind = {"deberta": "deberta-v2"}.get(cell.family, cell.family)
    labels = {"num_labels": cell.labels} if cell.labels else {}
    config = AutoConfig.for_model(
        kind, vocab_size=512, initializer_range=SPREAD[bool(cell.labels)], **ids, **labels, **cell.settings
    )
    with torch.random.fork_rng():
        torch.manual_seed(11)
        auto = AutoModelForSequenceClassification if cell.labels else AutoModelForCausalLM
        auto.from_config(config).save_pretrained(base)
    if cell.task == "e2e":
        write_e2e(data)
    if cell.task == "commonsense":
        write_commonsense(data)
    return base, data


class Split(nn.Module):
    """GPT-2's fused projection as three linear layers."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
            width = fused.weight.shape[0]
            layer = nn.Linear(width, width)
            layer.weight.data = fused.weight.data[:, index * width : (index + 1) * width].T.contiguous()
            layer.bias.data = fused.bias.data[index * width : (index + 1) * width].clone()
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.children()], dim=-1)


def build(cell: Cell, base: Path, method: str) -> nn.Module:
    """Return the model that a method starts from: head and adapter drawn from the seed."""
    seed = cell.recipes[method].seed
    if cell.labels:
        model = AutoModelForSequenceClassification.from_pretrained(base)
        draw = torch.Generator().manual_seed(seed)
        for head in sorted(cell.head):
            for layer in [part for part in model.get_submodule(head).modules() if isinstance(part, nn.Linear)]:
                layer.weight.data = torch.empty(layer.weight.shape).normal_(0.0, SPREAD[True], generator=draw)
                layer.bias.data.zero_()
    else:
        model = AutoModelForCausalLM.from_pretrained(base)
    if cell.family == "gpt2":
        for block in model.transformer.h:
            block.attn.c_attn = Split(block.attn.c_attn)
    if method == "full":
        return model
    rank, alpha = cell.ranks[method]
    common = {
        "target_modules": list(cell.targets),
        "task_type": "SEQ_CLS" if cell.labels else "CAUSAL_LM",
        "modules_to_save": list(cell.head) or None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if method == "lora":
            return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, **common))
        return get_peft_model(model, DualLoraConfig(r_magnitude=rank, r_direction=rank, alpha=alpha, **common))


def losses(cell: Cell) -> Losses:
    return row_losses if cell.labels else token_losses


def measure(cell: Cell, rows: list[Row], filler: int, recipe: Recipe) -> Callable[[nn.Module], dict[str, float]]:
    """Return what is measured on the validation rows: the loss, and for a classifier the score of its task.

    The loss is the mean over all tokens with a label, or over all rows of a classifier.
    """

    def measured(model: nn.Module) -> dict[str, float]:
        found = {"loss": losses(cell)(model, rows, filler, recipe).mean().item()}
        if cell.labels:
            batch = padded(rows, filler)
            labels = batch.pop("labels")
            logits = model(**batch).logits
            if cell.labels == 1:
                found["score"] = float(np.corrcoef(logits[:, 0].numpy(), labels.numpy())[0, 1])
            else:
                found["score"] = (logits.argmax(-1) == labels).double().mean().item()
        return found

    return measured


@dataclass(frozen=True)
class Material:
    """A cell on disk and in hand."""

    cell: Cell
    base: Path
    data: Path
    rows: list[Row]
    validation: list[Row]
    filler: int  # the token that pads; masked, so any would do

    @classmethod
    def of(cls, cell: Cell, folder: Path) -> Material:
        base, data = write(cell, folder)
        tokenizer = AutoTokenizer.from_pretrained(base)
        filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return cls(cell, base, data, *cell.read(data, tokenizer), filler)

    def train(self, method: str, recipe: Recipe | None = None, until: int = STEPS) -> Trace:
        """Train the twin of a method, by its own recipe or another."""
        recipe = recipe or self.cell.recipes[method]
        measured = measure(self.cell, self.validation, self.filler, recipe)
        return train(
            build(self.cell, self.base, method),
            self.rows,
            recipe,
            losses=losses(self.cell),
            filler=self.filler,
            until=until,
            measure=measured,
            every=self.cell.every,
        )
