"""The settings of a run as `transformers.Trainer` takes them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from dual_lora.config import RunConfig
from dual_lora.config.evaluation_batches import validated_in_training
from dual_lora.config.schedule import Batches, plan_warmup


def training_arguments(
    config: RunConfig,
    batches: Batches,
    steps: int,
    validate_every: int | None,
    folder: Path,
    in_bfloat16: bool,
    deepspeed: dict[str, Any] | None,
    draws: bool,
) -> TrainingArguments:
    """Return the arguments for a run of `steps` optimizer steps.

    validate_every: in optimizer steps; None: never. deepspeed: its configuration, for that engine. draws: see
    `graphs.draws_numbers`.
    """
    recipe, launch = config.recipe, config.launch
    on_cpu = launch.device == "cpu" or not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=batches.per_device,
        gradient_accumulation_steps=batches.accumulation,
        per_device_eval_batch_size=validated_in_training(launch, batches.per_device),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        lr_scheduler_type=recipe.schedule if recipe.schedule != "constant" else "constant_with_warmup",
        warmup_steps=plan_warmup(config, steps),
        max_grad_norm=recipe.max_grad_norm,
        # DeepSpeed enters the same autocast (`deepspeed_config`), and `_Trainer` for a loss that it computes itself.
        bf16=in_bfloat16 and launch.engine != "deepspeed",
        deepspeed=deepspeed,
        use_cpu=on_cpu,
        seed=config.seed,
        data_seed=config.seed,
        eval_strategy="steps" if validate_every else "no",
        eval_steps=validate_every,
        save_strategy="steps" if launch.save_every_steps else "no",  # then `checkpoints.ByTheClock` asks for them
        save_steps=launch.save_every_steps or 500,
        save_total_limit=None,  # `_Trainer` prunes once a new checkpoint is known to be whole
        logging_steps=max(1, min(10, steps // 20)),
        logging_nan_inf_filter=False,  # a NaN must be seen, not smoothed away
        report_to=[],
        remove_unused_columns=False,
        dataloader_num_workers=launch.dataloader_workers,
        dataloader_pin_memory=not on_cpu,
        accelerator_config={"non_blocking": not on_cpu},  # else each batch waits until the GPU has done all before it
        **_checkpointing(launch.gradient_checkpointing, draws),
        label_names=["labels"],
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
    )
    # A process trains on one GPU. The Trainer would split its batches over all that it sees (torch's DataParallel).
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _checkpointing(on: bool, draws: bool) -> dict[str, Any]:
    """Return the arguments for activation checkpointing under the name that the installed transformers has.

    draws: keep the state of the random numbers, so that a block draws again what it drew; it has to be asked for.
    """
    if not on:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False, "preserve_rng_state": draws}}
