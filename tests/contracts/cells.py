"""The cells of the contract: every YAML of `configs/method` on a tiny random model of each family, trained for real.

A model has two layers of width 32 and no dropout of its own, so that whatever differs between two runs comes from the
method. Base models and trained cells are made once per process and copied for each check.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from dual_lora import methods
from dual_lora.config import Dimensions, MethodConfig, ModelConfig, RecipeConfig
from dual_lora.config.choices import CONFIGS
from dual_lora.methods.budget import read_method
from dual_lora.tasks.base import Head

WIDTH, INNER, LAYERS, VOCABULARY = 32, 48, 2, 40
STEPS = 6  # AdaLoRA prunes in steps 1 to 3 of 6
RECIPE = RecipeConfig(name="contract", global_batch=8, learning_rate=5e-3, epochs=1, weight_decay=0.1)
TARGETS = {
    "gpt2": ("c_attn", "c_fc"),
    "roberta": ("query", "value"),
    "deberta": ("query_proj", "value_proj"),
    "llama": ("q_proj", "v_proj", "up_proj"),
}
FAMILIES = tuple(TARGETS)
# Other numbers of a method that is here: nothing that runs is their own.
OTHER_NUMBERS = (
    *("dual_lora_split_1_3", "dual_lora_split_3_1", "dual_lora_std_0_08", "dual_lora_std_0_16"),
    "dual_lora_plus",
    *("lora_gaussian", "lora_half_rank"),
)
METHODS = tuple(sorted({path.stem for path in (CONFIGS / "method").glob("*.yaml")} - set(OTHER_NUMBERS)))


def head(family: str) -> Head:
    return Head("causal_lm") if family in ("gpt2", "llama") else Head("classification", num_labels=3)


def model_config(family: str) -> ModelConfig:
    sizes = Dimensions(WIDTH, INNER, LAYERS, 2, 1 if family == "llama" else 2, VOCABULARY, max_positions=24)
    return ModelConfig(f"contract_{family}", family, family, "random", sizes, TARGETS[family])


@functools.cache
def _base(family: str) -> nn.Module:
    encoder: dict[str, Any] = {
        "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "vocab_size": VOCABULARY, "max_position_embeddings": 24, "num_labels": 3, "initializer_range": 0.1,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if family == "gpt2":
            config = GPT2Config(
                n_embd=WIDTH, n_inner=INNER, n_layer=LAYERS, n_head=2, vocab_size=VOCABULARY, n_positions=24,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.1, bos_token_id=1, eos_token_id=1,
            )  # fmt: skip
            return GPT2LMHeadModel(config)
        if family == "llama":
            config = LlamaConfig(
                hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=2,
                num_key_value_heads=1, vocab_size=VOCABULARY, max_position_embeddings=24, initializer_range=0.1,
            )  # fmt: skip
            return LlamaForCausalLM(config)
        if family == "roberta":
            return RobertaForSequenceClassification(RobertaConfig(type_vocab_size=1, **encoder))
        relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm"}
        return DebertaV2ForSequenceClassification(
            DebertaV2Config(position_buckets=8, share_att_key=True, type_vocab_size=0, pooler_dropout=0.0,
                            pooler_hidden_size=WIDTH, **relative, **encoder)
        )  # fmt: skip


def base(family: str) -> nn.Module:
    """Return a fresh copy of the family's base model, in evaluation mode."""
    return copy.deepcopy(_base(family)).eval()


def examples(family: str) -> list[dict[str, Any]]:
    """Return one global batch for each of the STEPS steps: every run sees the same rows in the same order."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(RECIPE.global_batch * STEPS):
        tokens = torch.randint(2, VOCABULARY, (12,), generator=generator)
        label = tokens if head(family).kind == "causal_lm" else tokens[0] % 3
        rows.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": label})
    return rows


def batch(family: str) -> dict[str, torch.Tensor]:
    """Return eight rows as model inputs."""
    rows = examples(family)[:8]
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


@torch.no_grad()
def logits(model: nn.Module, family: str) -> torch.Tensor:
    """Return the logits of the fixed batch in evaluation mode, in float32."""
    training = model.training
    model.eval()
    inputs = batch(family)
    result = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()
    model.train(training)
    return result


@functools.cache
def method_config(name: str) -> MethodConfig:
    return read_method(name)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method on a family; `changes` replaces settings (or fields) of the YAML."""

    method: str
    family: str
    changes: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.method}-{self.family}"

    @property
    def config(self) -> MethodConfig:
        found = method_config(self.method)
        settings, fields, optimizer = dict(found.settings), {}, found.optimizer
        for name, value in self.changes:
            if name.startswith("optimizer."):
                changed = optimizer.settings | {name.removeprefix("optimizer."): value}
                optimizer = dataclasses.replace(optimizer, settings=changed)
            elif name in {field.name for field in dataclasses.fields(MethodConfig)}:
                fields[name] = value
            else:
                settings[name] = value
        return dataclasses.replace(found, settings=settings, optimizer=optimizer, **fields)

    def changed(self, **changes: Any) -> Cell:
        return dataclasses.replace(self, changes=(*self.changes, *changes.items()))

    @property
    def is_adapter(self) -> bool:
        return self.config.trains == "adapter"

    def fresh(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Apply the method to a fresh base."""
        return methods.apply(
            base(self.family).to(dtype),
            self.config,
            model_config=model_config(self.family),
            head=head(self.family),
            seed=seed,
        )


class _Trainer(Trainer):
    """Rows in their order, and a loss that can be enlarged to make the straight-through clip act."""

    loss_factor = 1.0

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss * self.loss_factor if self.loss_factor != 1 else loss


def trainer(cell: Cell, model: nn.Module, folder: str, loss_factor: float = 1.0, **arguments: Any) -> Trainer:
    """Return the Trainer that trains a cell, as the suite sets one up."""
    settings: dict[str, Any] = {
        "output_dir": folder, "max_steps": STEPS, "per_device_train_batch_size": RECIPE.global_batch,
        "learning_rate": RECIPE.learning_rate, "weight_decay": RECIPE.weight_decay, "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0, "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "dataloader_pin_memory": False, "optim": "adamw_torch",
    }  # fmt: skip
    made = _Trainer(
        model=model,
        args=TrainingArguments(**(settings | arguments)),
        train_dataset=examples(cell.family),  # type: ignore[arg-type]
        callbacks=methods.callbacks(cell.config, STEPS),
        optimizers=(methods.create_optimizer(model, cell.config, RECIPE, TARGETS[cell.family]), None),
    )
    made.loss_factor = loss_factor
    # The Trainer takes any `**kwargs` for a loss that divides by the tokens of the whole batch; classifiers ignore it.
    made.model_accepts_loss_kwargs = head(cell.family).kind == "causal_lm"
    return made


def trained(cell: Cell, *, dtype: torch.dtype = torch.float32, **arguments: Any) -> tuple[nn.Module, list[float]]:
    """Train a cell for STEPS steps; return the model and the loss of each step."""
    model = cell.fresh(dtype=dtype)
    if cell.config.trains == "nothing":
        return model, []
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(cell, model, folder, **arguments)
        run.train()
    return model, [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@functools.cache
def _kept(cell: Cell, dtype: torch.dtype) -> tuple[nn.Module, tuple[float, ...], torch.Tensor]:
    model, losses = trained(cell, dtype=dtype)
    return model, tuple(losses), logits(model, cell.family)


def trained_copy(cell: Cell, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a copy of the trained cell, to be changed at will."""
    return copy.deepcopy(_kept(cell, dtype)[0]).eval()


def trained_losses(cell: Cell) -> list[float]:
    return list(_kept(cell, torch.float32)[1])


def trained_logits(cell: Cell) -> torch.Tensor:
    return _kept(cell, torch.float32)[2]


@functools.cache
def exceptions() -> dict[str, dict[str, str]]:
    """Return, per method, the exceptions its YAML states: promise, or promise@family, and the reason."""
    return {name: dict(method_config(name).contract) for name in METHODS}


def own_settings(name: str) -> list[str]:
    """Return the settings that a YAML itself states (not those of the YAML it builds on)."""
    import yaml

    values = yaml.safe_load(Path(CONFIGS / "method" / f"{name}.yaml").read_text(encoding="utf-8"))
    own = {"defaults", "name", "label", "trains", "config_class", "parameters", "contract", "budget"}
    names = [key for key in values if key not in own | {"optimizer"}]
    return names + [f"optimizer.{key}" for key in values.get("optimizer", {}).get("settings", {})]
