"""Cells that memorise 24 examples: what is run, and readings of the trained weights that use nothing of the suite.

A cell takes the paper's recipe of its combination. Scaled are the learning rate and the number of steps; an adapter
also gets rank 32 (16 + 16) on all linear layers of the blocks, since a random base offers nothing to build on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from dual_lora import models
from dual_lora.config import RunConfig
from dual_lora.config.compose import compose
from dual_lora.launch import launch
from tests.known_answers import overfit_bases, overfit_data

ITEMS = overfit_data.ITEMS
_ALL_LINEAR = {
    "gpt2": "q_proj,k_proj,v_proj,c_proj,c_fc",
    "llama": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    "roberta": "query,key,value,dense",
    "bert": "query,key,value,dense",
    "deberta": "query_proj,key_proj,value_proj,dense",
}
_RANK = {
    "lora": ["method.r=32", "method.lora_alpha=32"],
    "dual_lora": ["method.r_magnitude=16", "method.r_direction=16", "method.alpha=16"],
}
_PROMPTS = 96  # sequences at a time when scoring: speed only


@dataclass(frozen=True)
class Cell:
    """A combination of the paper with what is scaled."""

    family: str
    model: str  # whose recipe it is
    task: str
    method: str
    steps: int
    learning_rate: float
    words: tuple[str, ...] = ()  # further settings
    contradicted: bool = False  # GLUE: every item of the development set has the other class

    def __str__(self) -> str:
        return "-".join(
            [self.family, self.task.rpartition("/")[2], self.method, *(["contradicted"] * self.contradicted)]
        )

    @property
    def writes(self) -> bool:
        return self.family in ("gpt2", "llama")

    @property
    def own_words(self) -> list[str]:
        """Return the words that choose model, task and protocol, and what of them cannot be as published here."""
        words = [f"model={self.model}", f"task={self.task}", "protocol=paper", *overfit_bases.settings(self.family)]
        if self.writes:
            words.append("model.source=random")  # else the check before an evaluation looks for a pretrained base
        if self.task in ("e2e", "webnlg"):
            words.append("task.metrics=[BLEU]")  # METEOR needs Java, the others add nothing here
        return words


@dataclass(frozen=True)
class Trained:
    """A finished cell."""

    cell: Cell
    base: Path  # the checkpoint it started from
    data: Path
    results: Path
    record: dict[str, Any]
    texts: Sequence[tuple[str, ...]]  # causal: prompt and answer; GLUE: the one or two sentences
    classes: Sequence[int]  # GLUE: the class number of each item

    @property
    def folder(self) -> Path:
        return self.results / "runs" / self.record["identity"]["run_id"]

    def metrics(self, checkpoint: str, scoring: str, split: str = "test") -> dict[str, dict[str, float]]:
        """Return subset -> metrics of one checkpoint."""
        return metrics_of(self.record["scores"]["measurements"], checkpoint, scoring, split)

    def predictions(self, checkpoint: str, scoring: str = "generate") -> list[Any]:
        """Return the kept replies (or candidate scores) in the order of the items."""
        path = self.folder / "predictions" / f"{checkpoint}.test.{scoring}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line["value"] for line in sorted(lines, key=lambda line: line["index"])]


def metrics_of(
    measurements: Sequence[dict[str, Any]], checkpoint: str, scoring: str, split: str = "test"
) -> dict[str, dict[str, float]]:
    chosen = [
        one for one in measurements if (one["checkpoint"], one["scoring"], one["split"]) == (checkpoint, scoring, split)
    ]
    assert chosen, f"nothing measured of {checkpoint} by {scoring}"
    return {one["subset"]: one["metrics"] for one in chosen}


def train(cell: Cell, folder: Path) -> Trained:
    """Write data and base, and run the cell as `run.py` does."""
    data, results = folder / "data", folder / "results"
    texts, classes = _write(cell, data)
    base = overfit_bases.write(cell.family, folder / "base", [part for parts in texts for part in parts])
    words = [
        *cell.own_words, f"method={cell.method}", f"model.path={base}", "data.source=local", f"data.dir={data}",
        f"results={results}", "launch.device=cpu", f"launch.eval_batch={_PROMPTS}",
        f"launch.save_every_steps={cell.steps}", f"recipe.learning_rate={cell.learning_rate}",
        # A bounded run keeps the shape of the schedule: its warm-up is a tenth of the steps at most.
        f"recipe.epochs={cell.steps}", f"profile.max_steps={cell.steps}",
    ]  # fmt: skip
    if cell.task != "commonsense":
        # There once per epoch: every third step, or each. On E2E early enough to find the best validation loss before
        # the texts are learned.
        words.append("protocol.validation_every_steps=20")
    if cell.method in _RANK:
        words += [*_RANK[cell.method], f"method.target_modules=[{_ALL_LINEAR[cell.family]}]"]
    (config,) = compose([*words, *cell.words])
    launch([_in_one_piece(config)])
    (path,) = (results / "records").glob("*.json")
    return Trained(cell, base, data, results, json.loads(path.read_text()), texts, classes)


def _in_one_piece(config: RunConfig) -> RunConfig:
    """Compute a global batch at once where it is small: the same gradient in fewer passes."""
    size = config.recipe.global_batch
    return dataclasses.replace(config, launch=dataclasses.replace(config.launch, per_device_batch=size))


def _write(cell: Cell, data: Path) -> tuple[list[tuple[str, ...]], list[int]]:
    if cell.task == "commonsense":
        return overfit_data.write_commonsense(data), []
    if cell.task in ("e2e", "webnlg"):
        pairs = {"e2e": overfit_data.write_e2e, "webnlg": overfit_data.write_webnlg}[cell.task](data)
        # As the LoRA release joins the two: GPT-2's end token, then the reference after a blank.
        return [(f"{context}<|endoftext|>", f" {reference}") for context, reference in pairs], []
    name = cell.task.rpartition("/")[2]
    rows = overfit_data.write_glue(data, name, contradicted=cell.contradicted)
    return [row[:-1] for row in rows], [row[-1] for row in rows]


# -- readings that use nothing of the suite ----------------------------------------------------------------------------


def base_model(trained: Trained) -> Any:
    """Return the untrained base as a user loads it; GPT-2 with its attention split, as docs/models.md says."""
    if trained.cell.family == "gpt2":
        return models.gpt2.SplitGPT2LMHeadModel.from_pretrained(trained.base).eval()
    if trained.cell.writes:
        return AutoModelForCausalLM.from_pretrained(trained.base).eval()
    torch.manual_seed(99)  # the head that comes with it is replaced by the saved one
    return AutoModelForSequenceClassification.from_pretrained(trained.base, num_labels=2).eval()


def saved_model(trained: Trained, weights: str | None = None) -> Any:
    """Return the model that a run saved: its adapter on the base, or the weights that full fine-tuning left.

    weights: another file of trained weights in the run's folder, e.g. of a selected checkpoint.
    """
    model = base_model(trained)
    if trained.cell.method != "full":
        model = PeftModel.from_pretrained(model, trained.folder / "adapter").eval()
    elif weights is None:
        weights = "last.safetensors"
    if weights is not None:
        _, unexpected = model.load_state_dict(load_file(trained.folder / weights), strict=False)
        assert not unexpected
    return model


@torch.no_grad()
def outputs(model: Any, trained: Trained) -> list[torch.Tensor]:
    """Return each item's logits: of every token of the answer and its end (tokens, vocabulary), or (classes,)."""
    tokenizer = AutoTokenizer.from_pretrained(trained.base)
    if not trained.cell.writes:
        columns = [list(column) for column in zip(*trained.texts, strict=True)]
        return list(model(**tokenizer(*columns, padding=True, return_tensors="pt")).logits)
    found = []
    for prompt, answer in trained.texts:
        start, whole = len(tokenizer(prompt).input_ids), tokenizer(prompt + answer).input_ids
        found.append(model(input_ids=torch.tensor([whole])).logits[0, start - 1 :])
    return found


def known(logits: Sequence[torch.Tensor], trained: Trained) -> int:
    """Return how many of the items the likeliest tokens (the likeliest class) answer as the data does.

    If at each place of an answer the likeliest token is the answer's own, and the end token after it, then greedy
    decoding writes this answer.
    """
    if not trained.cell.writes:
        return sum(int(row.argmax()) == right for row, right in zip(logits, trained.classes, strict=True))
    tokenizer = AutoTokenizer.from_pretrained(trained.base)
    right = 0
    for (prompt, answer), rows in zip(trained.texts, logits, strict=True):
        start, whole = len(tokenizer(prompt).input_ids), tokenizer(prompt + answer).input_ids
        right += rows.argmax(-1).tolist() == [*whole[start:], tokenizer.eos_token_id]
    return right


def stock_model(trained: Trained, folder: Path) -> Any:
    """Return an exported checkpoint as transformers alone reads it."""
    auto = AutoModelForCausalLM if trained.cell.writes else AutoModelForSequenceClassification
    return auto.from_pretrained(folder).eval()
