"""AdaLoRA's rank allocation at every optimizer step (PEFT leaves the call to the training loop)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dual_lora.config import ConfigError

# Shares of the training before the budget starts to fall and after it has fallen. The AdaLoRA paper (arXiv 2303.10512)
# sets steps per GLUE task, about a tenth and a half of its trainings; the round shares are this project's guess.
INITIAL_SHARE = 0.1
FINAL_SHARE = 0.5
_STATE_FILE = "adalora_importance.safetensors"


def allocation_schedule(total_steps: int, tinit: int | None, tfinal: int | None) -> tuple[int, int]:
    """Return (tinit, tfinal) in optimizer steps: the given ones, or the default shares of the training.

    Raises:
        ConfigError: they leave no step in which the budget falls.
    """
    first = math.floor(INITIAL_SHARE * total_steps) if tinit is None else tinit
    last = math.floor(FINAL_SHARE * total_steps) if tfinal is None else tfinal
    if first >= total_steps - last:
        raise ConfigError(
            f"method.tinit={first} and method.tfinal={last} leave no step of {total_steps} in which AdaLoRA's budget "
            "falls; lower them, or leave them null"
        )
    return first, last


class RankAllocationCallback(TrainerCallback):
    """Prunes AdaLoRA's singular values down to the target rank, on the schedule tinit → total steps − tfinal.

    The rank pattern is kept here and not in the PEFT config between steps: with a pattern PEFT saves truncated tensors,
    which a resumed training of the full size cannot load. A saved adapter has its pruned singular values at zero
    instead. The importance scores are saved with each checkpoint, so that a resumed training prunes as an uninterrupted
    one.

    PEFT adds the orthogonality term to every loss the model returns. It is on during a training step only, so that a
    validation loss is the task's and can be compared with other methods'.

    Args:
        tinit, tfinal: optimizer steps as in `peft.AdaLoraConfig`; None for 10 % and 50 % of the training.
    """

    def __init__(self, tinit: int | None = None, tfinal: int | None = None) -> None:
        self.tinit = tinit
        self.tfinal = tfinal
        self.rank_pattern: dict[str, list[bool]] | None = None
        self._regularisation = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        tuner, config = given["model"].base_model, self._config(given)
        config.total_step = state.max_steps
        config.tinit, config.tfinal = allocation_schedule(state.max_steps, self.tinit, self.tfinal)
        self._regularisation = config.orth_reg_weight
        config.orth_reg_weight = 0.0
        tuner.rankallocator.peft_config = config
        if state.global_step > 0:
            self._load(tuner.rankallocator, self._folder(args, state), tuner.model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        config = self._config(given)
        # A causal model's loss is a sum over the tokens of the whole batch, so each of its backward calls would add the
        # full term; the Trainer averages the others itself.
        calls = args.gradient_accumulation_steps * (args.world_size if args.average_tokens_across_devices else 1)
        config.orth_reg_weight = self._regularisation / (calls if config.task_type == "CAUSAL_LM" else 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self._config(given).orth_reg_weight = 0.0

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        # After the step, before the gradients are zeroed; this step is not counted in global_step yet.
        config = self._config(given)
        config.rank_pattern = self.rank_pattern
        given["model"].base_model.update_and_allocate(state.global_step + 1)
        self.rank_pattern, config.rank_pattern = config.rank_pattern, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        folder = self._folder(args, state)
        if not state.is_world_process_zero or not folder.is_dir():
            return
        allocator = given["model"].base_model.rankallocator
        tensors: dict[str, torch.Tensor] = {}
        for kind in ("exp_avg_ipt", "exp_avg_unc"):
            tensors |= {f"{kind}/{name}": value.contiguous() for name, value in getattr(allocator, kind).items()}
        save_file(tensors, folder / _STATE_FILE, metadata={"rank_pattern": json.dumps(self.rank_pattern)})

    def _load(self, allocator: Any, folder: Path, model: torch.nn.Module) -> None:
        path = folder / _STATE_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: this checkpoint was not written by an AdaLoRA training")
        devices = {name: parameter.device for name, parameter in model.named_parameters()}
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                kind, _, name = key.partition("/")
                getattr(allocator, kind)[name] = file.get_tensor(key).to(devices[name])
                allocator.ipt.setdefault(name, torch.zeros_like(allocator.exp_avg_ipt.get(name, torch.empty(0))))
            self.rank_pattern = json.loads(file.metadata()["rank_pattern"])

    @staticmethod
    def _config(given: dict[str, Any]) -> Any:
        tuner = given["model"].base_model
        return tuner.peft_config[tuner.trainable_adapter_name]

    @staticmethod
    def _folder(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
