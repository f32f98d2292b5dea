"""Four cells of the paper at the size of a test: command lines, and their recipes once more.

The models are of the paper's families and 32 wide; their dropouts are zero, so that both sides compute one function.
Rates are higher than the recipes', so that thirty steps go somewhere; what else differs stands in `words`. Sizes, rates
and seeds are such that errors of 1e-7 in every gradient change weights by less than 1e-5 (key biases apart).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.known_answers.twin import Recipe, Row
from tests.known_answers.twin_data import read_commonsense, read_e2e, read_pairs

METHODS = ("full", "lora", "dual_lora")
STEPS = 30
_WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Cell:
    """A model of the paper on one of its tasks."""

    model: str
    family: str
    task: str
    words: tuple[str, ...]  # of the command line, beside model, task and method
    recipes: dict[str, Recipe]
    ranks: dict[str, tuple[int, int]]  # method -> rank (each of two for Dual LoRA), alpha
    targets: tuple[str, ...]
    head: tuple[str, ...]  # trained whole
    labels: int  # of the head; 0: the model writes
    read: Callable[[Path, Any], tuple[list[Row], list[Row]]]  # (data, tokenizer) -> training and validation rows
    every: int  # steps between two measurements
    chosen: str  # checkpoint of the headline
    settings: dict[str, Any]  # of the transformers config


_WRITING = ("profile.test_items=1", "protocol.decoding.beams=1", "protocol.decoding.max_new_tokens=2")
# 40 examples are four steps, the last one filled up. Nothing bounds its 7.5 epochs, so the recipe's own warm-up holds.
_MRPC = Recipe(seed=13, batch=12, micro=6, rate=1e-3, steps=STEPS, warmup=2, decay=0.1)
_STSB = Recipe(batch=4, micro=2, rate=1e-3, steps=STEPS, warmup=3, decay=0.1, clip=15.0)
_E2E = Recipe(batch=8, micro=4, rate=3e-3, steps=STEPS, warmup=3, decay=0.01, epsilon=1e-6, clip=0.0, smoothing=0.1)
_COMMONSENSE = Recipe(seed=2, batch=4, micro=2, rate=3e-3, steps=STEPS, warmup=3, decay=0.05)


CELLS = {
    "gpt2": Cell(
        model="gpt2_medium",
        family="gpt2",
        task="e2e",
        words=(*_WRITING, "profile.max_steps=30", "task.metrics=[BLEU]", "launch.per_device_batch=4"),
        recipes={
            "full": replace(_E2E, rate=1e-3),
            "lora": _E2E,
            "dual_lora": replace(_E2E, rate=6e-3, epsilon=1e-8, delta_warmup=3),
        },
        ranks={"lora": (4, 32), "dual_lora": (2, 16)},
        targets=("q_proj", "v_proj"),
        head=(),
        labels=0,
        read=read_e2e,
        every=12,
        chosen="last",
        settings={
            "n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 2, "n_positions": 128,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        },
    ),
    "roberta": Cell(
        model="roberta_base",
        family="roberta",
        task="glue/mrpc",
        words=("recipe.global_batch=12", "recipe.epochs=7.5", "launch.per_device_batch=6"),
        recipes={
            "full": replace(_MRPC, warmup=5, beta2=0.98, epsilon=1e-6, clip=0.0),
            "lora": replace(_MRPC, rate=3e-3),
            "dual_lora": replace(_MRPC, rate=6e-3, delta_warmup=6),
        },
        ranks={"lora": (8, 16), "dual_lora": (4, 8)},
        targets=("query", "value"),
        head=("classifier",),
        labels=2,
        read=read_pairs("MRPC", ("#1 String", "#2 String"), "Quality", int),
        every=4,
        chosen="best_dev",
        settings={**_WIDTH, **_NO_DROPOUT, "max_position_embeddings": 130, "type_vocab_size": 1},
    ),
    "deberta": Cell(
        model="deberta_xxl",
        family="deberta",
        task="glue/stsb",
        words=("recipe.global_batch=4", "profile.max_steps=30", "launch.per_device_batch=2",
               "model.classifier_dropout=0.0"),
        recipes={
            "full": replace(_STSB, warmup=2, decay=0.01),
            "lora": replace(_STSB, rate=3e-3),
            "dual_lora": replace(_STSB, rate=6e-3, delta_warmup=3),
        },
        ranks={"lora": (16, 32), "dual_lora": (8, 16)},
        targets=("query_proj", "value_proj"),
        head=("classifier", "pooler"),
        labels=1,
        read=read_pairs("STS-B", ("sentence1", "sentence2"), "score", float),
        every=10,
        chosen="best_dev",
        settings={
            **_WIDTH, **_NO_DROPOUT, "relative_attention": True, "position_buckets": 32, "norm_rel_ebd": "layer_norm",
            "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "type_vocab_size": 0,
            "max_position_embeddings": 512, "max_relative_positions": -1, "layer_norm_eps": 1e-7,
            "conv_kernel_size": 3, "conv_act": "gelu",
        },
    ),
    "llama": Cell(
        model="llama",
        family="llama",
        task="commonsense",
        words=(
            *_WRITING, "profile.max_steps=30", "task.subsets=[boolq]", "task.scorings=[generate]",
            "recipe.global_batch=4", "recipe.epochs=4", "recipe.weight_decay=0.05",
            "protocol.validation_examples=7", "protocol.validation_every_steps=7", "launch.per_device_batch=2",
        ),
        recipes={
            "full": replace(_COMMONSENSE, clip=2.3),
            "lora": replace(_COMMONSENSE, rate=5e-3),
            "dual_lora": replace(_COMMONSENSE, rate=1e-2, clip=0.3, delta_warmup=3),
        },
        ranks={"lora": (32, 64), "dual_lora": (16, 32)},
        targets=("q_proj", "k_proj", "v_proj", "up_proj", "down_proj"),
        head=(),
        labels=0,
        read=read_commonsense,
        every=7,
        chosen="best_loss",
        settings={**_WIDTH, "num_key_value_heads": 2},
    ),
}  # fmt: skip


def command(cell: Cell, base: Path, data: Path, results: Path, *more: str) -> list[str]:
    """Return the words of `run.py` for a cell, without its method."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_key_value_heads": 2,
        "vocab_size": 512, "max_positions": {"gpt2": 128, "roberta": 130, "deberta": 64}.get(cell.family, 0),
    }  # fmt: skip
    source = ["data.source=local", f"data.dir={data}"] if data.exists() else ["data.source=sample"]
    dimensions = [f"model.dimensions.{name}={value}" for name, value in sizes.items()]
    where = [
        f"model.path={base}",
        "model.source=random",
        "model.dtype=float32",
        *dimensions,
        *source,
        f"results={results}",
    ]
    return [
        f"model={cell.model}",
        f"task={cell.task}",
        "protocol=paper",
        "launch.device=cpu",
        *where,
        *cell.words,
        *more,
    ]


def own_words(cell: Cell, method: str) -> list[str]:
    """Return the words that one method has for itself."""
    recipe = cell.recipes[method]
    words = [f"method={method}", f"recipe.learning_rate={recipe.rate}", f"seed={recipe.seed}"]
    if recipe.clip not in (0.0, 1.0):
        words.append(f"recipe.max_grad_norm={recipe.clip}")  # amid the norms of this small model
    if method in ("lora", "dual_lora"):
        words.append(f"method.{'lora_' if method == 'lora' else ''}dropout=0.0")
    if method == "full" and cell.family == "roberta":
        words.append("recipe.warmup_steps=5")  # of 137, which thirty steps never see the end of
    if method == "dual_lora" and cell.family == "roberta":
        words.append("method.delta_warmup_steps=6")  # so that the first epoch is measured within; elsewhere the default
    return words
