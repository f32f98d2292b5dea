"""Tiny random models of the families that are used, and what puts an adapter on them and trains it for a moment."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from dual_lora import DualLoraConfig

BERT_SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LLAMA_SIZES = {**BERT_SIZES, "num_key_value_heads": 1}


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**LLAMA_SIZES))


def roberta() -> PreTrainedModel:
    return RobertaForSequenceClassification(RobertaConfig(**BERT_SIZES, num_labels=3, pad_token_id=1))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {"gpt2": gpt2, "llama": llama, "roberta": roberta}
TOKENS = torch.arange(2, 22).view(2, 10)


def make_base(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).eval()


def make_config(name: str, **settings: object) -> DualLoraConfig:
    classifier = {"task_type": "SEQ_CLS"} if name == "roberta" else {"task_type": "CAUSAL_LM"}
    return DualLoraConfig(**{"r_magnitude": 3, "r_direction": 2, "alpha": 8, "init_std": 0.2, **classifier, **settings})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def train_a_little(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model(TOKENS).logits.float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
