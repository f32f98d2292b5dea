"""What is found by the kind of a layer: blocks, and the two kinds of linear layers that a split GPT-2 has.

GPT-2's layers are `Conv1D`, whose weight is (in, out); the parts of its split attention are `nn.Linear`, (out, in).
PEFT is told once for all layers which way weights are laid out, and corrects it layer by layer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from dual_lora import methods, models
from dual_lora.config.compose import compose
from dual_lora.tasks.base import Head

WRITER = Head("causal_lm")
IDS = torch.arange(20, 60).view(2, 20)
OF_BOTH_KINDS = "[q_proj,v_proj,c_fc,c_proj]"


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "vera", "randlora", "hira", "adalora", "dual_lora"])
def test_an_adapter_on_both_kinds_of_layers_acts_and_merges_into_what_it_computes(method: str) -> None:
    words = ["model=tiny_gpt2", "task=e2e", "data.source=sample", "task.metrics=[BLEU]"]
    (config,) = compose([*words, f"method={method}", f"method.target_modules={OF_BOTH_KINDS}"])
    base = models.load(config.model, WRITER, dtype="float32", seed=0).model
    model: Any = methods.apply(
        models.load(config.model, WRITER, dtype="float32", seed=0).model,
        config.method,
        model_config=config.model,
        head=WRITER,
        seed=0,
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        apart = model(input_ids=IDS).logits
        assert (apart - base(input_ids=IDS).logits).abs().max() > 1e-2
        with methods.merged(model) as scored:
            torch.testing.assert_close(scored(input_ids=IDS).logits, apart, rtol=1e-4, atol=1e-4)
        stock = models.fuse_attention(methods.export_merged(model))
        assert type(stock).__name__ == "GPT2LMHeadModel"
        torch.testing.assert_close(stock(input_ids=IDS).logits, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "roberta", "deberta"])
def test_each_block_is_one_to_checkpointing_and_to_zero_3(family: str) -> None:
    task = ["task=e2e", "task.metrics=[BLEU]"] if family in ("gpt2", "llama") else ["task=glue/rte"]
    (config,) = compose([f"model=tiny_{family}", *task, "data.source=sample", "method=lora"])
    head = WRITER if family in ("gpt2", "llama") else Head("classification", num_labels=2)
    net = models.load(config.model, head, dtype="float32", seed=0).model
    blocks = [module for module in net.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert len(blocks) == config.model.dimensions.num_layers
