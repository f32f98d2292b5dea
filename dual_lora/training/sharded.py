"""What `transformers.Trainer` has to do otherwise for a model that `distributed.sharding` has split.

transformers and accelerate shard through a plugin of their own, which splits what is trained as well and waits with the
optimizer's files for as many processes as wrote them. Here the model comes sharded, accelerate only puts its autocast
around it, and checkpoints are those of one process: whichever way the weights are held, training continues from them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from dual_lora.distributed import sharding
from dual_lora.models import shards, sources


class ShardedTrainer(Trainer):
    """Trains a model of which every process holds a part; to be a class's first base, before another Trainer."""

    accelerator: Any
    trained: list[torch.nn.Parameter]
    _units: list[Any] | None = None

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # Otherwise it would wrap the model in DDP.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        if self._units is None:
            self._units = []
            if any(map(sharding.is_shard, self.trained)):
                self._units = sharding.units(model)
                sharding.reduce_in_order(model)
        last = self.accelerator.sync_gradients
        for unit in self._units:
            unit.set_requires_gradient_sync(last, recurse=False)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if last:
            sharding.average_gradients(self.trained)
        return loss

    def _clip(self, largest: float) -> torch.Tensor:
        return sharding.clip_together(self.trained, largest)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        state = None
        if not isinstance(self.model, PeftModel):  # an adapter is whole in every process
            state = sharding.whole_weights(self.model, here=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        parameters = dict(self.model.named_parameters())
        for file in sources.weight_files(Path(resume_from_checkpoint)):
            with safe_open(file, "pt") as opened:
                names = [name for name in opened.keys() if name in parameters]  # noqa: SIM118  # it is no dict
            for name in names:
                sharding.write_own(parameters[name], shards.own_part(file, name, parameters[name]))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = sharding.whole_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        sharding.load_whole_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
