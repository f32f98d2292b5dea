"""fp16 on a GPU: the Trainer multiplies the loss by up to 65536, and the factors move as in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from dual_lora import DeltaWarmupCallback
from tests.unit.tuner.tiny_adapted_model import LLAMA_SIZES, make_config

SIZES = {**LLAMA_SIZES, "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}


def trained(folder: Path, **precision: bool) -> tuple[list[float], list[float]]:
    """Return the losses of 60 steps, and how far A, B, C and D of the first layer have moved."""
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), make_config("llama", init_std=0.02))
    draw = torch.Generator().manual_seed(1)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(3, 512, (256, 64), generator=draw)]
    arguments = TrainingArguments(
        str(folder), max_steps=60, per_device_train_batch_size=16, learning_rate=2e-3, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, **precision,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[DeltaWarmupCallback(5)])
    layer = model.base_model.dual_lora_layers()[0]
    start = [factor.detach().clone() for factor in layer.factors("default")]
    trainer.train()
    moved = [
        (end.cpu() - begin.cpu()).norm().item() for end, begin in zip(layer.factors("default"), start, strict=True)
    ]
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], moved


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_moves_the_factors_as_float32_does(precision, tmp_path):
    losses, moved = trained(tmp_path / "float32")
    halved, moved_too = trained(tmp_path / precision, **{precision: True})
    assert losses[-1] < losses[0] - 0.05
    assert halved == pytest.approx(losses, abs=0.01)
    assert moved_too == pytest.approx(moved, rel=0.02)
