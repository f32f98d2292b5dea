"""The warm-up of the update in a real `transformers.Trainer`: it counts optimizer steps and survives a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from dual_lora import DeltaWarmupCallback, DualLoraConfig, DualLoraLinear
from tests.unit.tuner.tiny_adapted_model import make_base

STEPS, WARMUP_STEPS = 10, 4


class Tokens(Dataset):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(2, 64, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


def make_model() -> nn.Module:
    return get_peft_model(make_base("llama"), DualLoraConfig(r_magnitude=3, r_direction=3, init_std=0.2))


class FactorLog(TrainerCallback):
    """Notes the factor that each forward pass uses, apart for training and evaluation, and at every save."""

    def __init__(self, model: nn.Module) -> None:
        self.training: list[float] = []
        self.evaluation: list[float] = []
        self.saves: list[float] = []
        self.layer = next(module for module in model.modules() if isinstance(module, DualLoraLinear))
        self.layer.register_forward_pre_hook(self.note)

    def note(self, layer: DualLoraLinear, inputs: Any) -> None:
        (self.training if layer.training else self.evaluation).append(layer.delta_warmup)

    def on_save(self, *arguments: Any, **keywords: Any) -> None:
        self.saves.append(self.layer.delta_warmup)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def train(
    folder: Path, *, accumulation: int = 1, stop_at: int | None = None, resume: bool = False, **settings: Any
) -> tuple[Trainer, FactorLog]:
    model = make_model()
    log = FactorLog(model)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        logging_steps=1,
        save_steps=1,
        seed=0,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    callbacks = [DeltaWarmupCallback(WARMUP_STEPS), log, *([StopAt(stop_at)] if stop_at else [])]
    dataset = Tokens()
    trainer = Trainer(model, arguments, train_dataset=dataset, eval_dataset=dataset, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, log


def adapter(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


EXPECTED = [min(1.0, k / WARMUP_STEPS) for k in range(STEPS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, FactorLog]:
    """A training that nothing interrupts, accumulates or validates."""
    return train(tmp_path_factory.mktemp("whole"))


def test_the_factor_counts_optimizer_steps_and_not_forward_passes(tmp_path, whole):
    for accumulation, (_, log) in ((1, whole), (2, train(tmp_path, accumulation=2))):
        assert log.training == [factor for factor in EXPECTED for _ in range(accumulation)]
        assert log.layer.delta_warmup == 1


@pytest.mark.parametrize("stop_at", [1, 3, 7])
def test_an_interrupted_and_resumed_training_ends_in_the_same_bits(tmp_path, stop_at, whole):
    uninterrupted, whole_log = whole
    _, first_log = train(tmp_path, stop_at=stop_at)
    resumed, second_log = train(tmp_path, resume=True)
    assert first_log.training + second_log.training == whole_log.training == EXPECTED
    assert losses(resumed) == losses(uninterrupted)
    for name, parameter in adapter(resumed).items():
        assert torch.equal(parameter, adapter(uninterrupted)[name]), name


def test_validation_and_saving_during_warmup_see_the_adapter_as_it_would_be_loaded(tmp_path, whole):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "load_best_model_at_end": True}
    trainer, log = train(tmp_path, **settings)
    assert log.training == EXPECTED, "the factor of a step is restored after a validation"
    assert set(log.evaluation) == {1.0}
    assert len(log.evaluation) >= STEPS + 1
    assert log.saves == [1.0] * STEPS
    assert losses(whole[0]) == losses(trainer), "validating must not change the training"


def test_no_warmup_trains_at_1_from_the_first_step(tmp_path):
    model = make_model()
    log = FactorLog(model)
    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no")
    Trainer(model, arguments, train_dataset=Tokens(), callbacks=[DeltaWarmupCallback(0), log]).train()
    assert log.training == [1.0, 1.0]


def test_the_default_length_comes_from_the_steps_of_the_training(tmp_path):
    callback = DeltaWarmupCallback()
    arguments = TrainingArguments(str(tmp_path), max_steps=11, report_to=[], use_cpu=True, save_strategy="no")
    Trainer(make_model(), arguments, train_dataset=Tokens(), callbacks=[callback]).train()
    assert callback.resolved_warmup_steps == 2
