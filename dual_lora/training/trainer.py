"""Training one run with `transformers.Trainer`: settings from the recipe, curves, selection, resume, divergence.

The global batch is the recipe's and accumulation is derived: the number of devices never changes the experiment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, Trainer, TrainerCallback

from dual_lora import methods
from dual_lora.config import RunConfig
from dual_lora.config.schedule import Batches, plan_steps, plan_validation
from dual_lora.distributed import processes, sharding
from dual_lora.distributed.deepspeed import deepspeed_config, gather_whole_blocks, register_factors, zero_stage
from dual_lora.distributed.ordered_reduce import clip, register_ordered_hook
from dual_lora.tasks.base import Head
from dual_lora.training.arguments import training_arguments
from dual_lora.training.as_it_trains import as_it_trains
from dual_lora.training.callbacks import Bar, Curves, Selection
from dual_lora.training.checkpoints import ByTheClock, check_layout, prune, seal, start_from
from dual_lora.training.graphs import GraphedCalls, GraphedSteps, draws_numbers, obstacle
from dual_lora.training.loss import Objective
from dual_lora.training.recorders import CudaRecorder
from dual_lora.training.result import TrainingResult
from dual_lora.training.sampling import Epochs, StepSampler, own_rows
from dual_lora.training.sharded import ShardedTrainer
from dual_lora.training.stopping import Alive, Interrupted, Interruption
from dual_lora.tuner.warmup import follows_recorded

logger = logging.getLogger(__name__)
_CURVE_POINTS = 200  # of each curve in the record; the full curve stays in the run folder


@dataclass(frozen=True)
class Data:
    """What is trained on: encoded rows, and how a batch is made of them. `validation` may be empty."""

    tokenizer: Any
    collator: Callable[[list[Any]], dict[str, torch.Tensor]]
    train: Sequence[dict[str, Any]]
    validation: Sequence[dict[str, Any]]


def train(
    model: torch.nn.Module,
    config: RunConfig,
    data: Data,
    *,
    batches: Batches,
    dtype: str,
    folder: Path,
    head: Head,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainingResult:
    """Train `model` in place and return curves, cost and the files of the selected checkpoints.

    Continues from the last complete checkpoint in `folder`. Raises `Diverged`, `Interrupted`.
    """
    recipe = config.recipe
    steps, per_epoch = plan_steps(config, len(data.train))
    data.tokenizer.padding_side = "right"  # learned positions (GPT-2) must start at 0; rotary ones do not mind
    stage = zero_stage(config, batches.world_size)
    block_elements = gather_whole_blocks(model) if (config.launch.engine, stage) == ("deepspeed", 3) else 0
    curves = Curves(folder / "curves.jsonl")
    selection = Selection(folder / "selected", methods.trainable_state)
    interruption = Interruption()
    clock = ByTheClock()
    trainer = (_ShardedTrainer if sharding.is_sharded(model) else _Trainer)(
        model=model,
        args=training_arguments(
            config,
            batches,
            steps,
            plan_validation(config, steps, per_epoch) if len(data.validation) else None,
            folder,
            dtype == "bfloat16",
            deepspeed_config(config, batches, dtype, _trained(model), block_elements),
            draws_numbers(model),
        ),
        data_collator=data.collator,
        train_dataset=data.train,
        eval_dataset=data.validation if len(data.validation) else None,
        processing_class=data.tokenizer,
        callbacks=[*methods.callbacks(config.method), curves, selection, interruption, Bar(), Alive(), *callbacks],
    )
    trainer.make_optimizer = partial(
        methods.create_optimizer, model, config.method, recipe, config.model.target_modules
    )
    trainer.remove_callback(PrinterCallback)
    trainer.objective = Objective(head, model, recipe.label_smoothing, batches.global_batch, data.validation)
    trainer.model_accepts_loss_kwargs = True  # it counts the items of a step, by which the objective divides
    trainer.order = StepSampler(
        len(data.train),
        batches.global_batch,
        config.seed,
        [len(row["input_ids"]) for row in data.train] if recipe.length_grouped else None,
    )
    trainer.add_callback(Epochs(trainer.order))
    trainer.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.launch.save_every_steps is None:
        trainer.add_callback(clock)
    trainer.selection, trainer.clock = selection, clock
    trainer.keep_checkpoints = config.launch.keep_checkpoints
    trainer.computes_in_bfloat16 = dtype == "bfloat16"
    trainer.layout = {"engine": config.launch.engine, "zero_stage": stage, "processes": batches.world_size}
    start = start_from(folder)
    if start is not None:
        check_layout(start, trainer.layout)
        logger.info("continuing from %s", start)
    curves.forget_after(start)
    selection.forget_after(start)
    begun = time.perf_counter()
    trainer.graphs, trainer.graphs_obstacle = config.launch.graphs, obstacle(config, draws_numbers(model))
    with interruption, as_it_trains(model, config.launch, trainer.args.device, dtype, trainer.graphs_obstacle is None):
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        finished = interruption.signal is None or trainer.state.global_step == steps
        if finished and len(data.validation) and selection.last_step != trainer.state.global_step:
            trainer.evaluate()
        trainer.close_graphs()
    if interruption.signal is not None and trainer.state.global_step < steps:
        raise Interrupted(f"stopped by {interruption.signal} after step {trainer.state.global_step} of {steps}")
    # accelerate leaves its autocast and its float32 outputs in the model; a process that only evaluates has neither.
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trainer.model_wrapped.__dict__.pop("zero_grad", None)
    seconds = time.perf_counter() - begun + curves.seconds_before(start)
    processes.barrier()  # the main process may still be writing the selected weights
    return TrainingResult(
        steps=trainer.state.global_step,
        curves=curves.summary(_CURVE_POINTS),
        seconds=seconds,
        tokens=curves.tokens,
        useful_tokens=curves.useful_tokens,
        flops=float(trainer.state.total_flos),
        selected=selection.files(),
        resumed_from=curves.resumed_from,
        graphs=trainer.graphs_report(),
    )


def _trained(model: torch.nn.Module) -> int:
    """Return how many elements are trained, wherever ZeRO-3 has put them."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)


class _Trainer(Trainer):
    """Keeps the loss of every step on the device and counts tokens, so that curves cost no synchronisation per step."""

    objective: Objective
    loss_is_scaled_for_ga = True  # from transformers 5.23 on; before, `model_accepts_loss_kwargs` says it
    order: StepSampler
    selection: Selection
    clock: ByTheClock
    keep_checkpoints: int
    layout: dict[str, Any]
    computes_in_bfloat16: bool
    trained: list[torch.nn.Parameter]
    optimizer: Any
    make_optimizer: Callable[[], torch.optim.Optimizer]
    graphs: str = "off"  # "auto", "on" or "off"
    graphs_obstacle: str | None = None  # why there are none, whatever was asked for
    _steps: GraphedSteps | None = None
    _validation: GraphedCalls | None = None  # a batch's validation loss, in the memory of the steps
    _said: dict[str, Any] | None = None  # what both report at the end
    _operations_per_token: int | None = None
    _prepared: Any = None  # the model as the Trainer wraps it, once its wrapper is as it should be

    @property
    def _curves(self) -> Curves:
        return next(item for item in self.callback_handler.callbacks if isinstance(item, Curves))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the method's optimizer. Given to `Trainer(optimizers=...)`, it would be dropped under DeepSpeed."""
        if self.optimizer is None:
            self.optimizer = self.make_optimizer()
        return self.optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        if self._prepared is not model:
            if self.is_deepspeed_enabled:
                register_factors(self.model)
            elif self.graphs_obstacle is None:
                self._steps = self._graphed_steps(model)
            elif isinstance(model, DistributedDataParallel):
                register_ordered_hook(model)
            if not self.is_deepspeed_enabled:
                model.zero_grad = self._drop_gradients
            self._prepared = model
        self._curves.count(inputs)
        if self._steps is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._steps(inputs, num_items_in_batch)
            if self.accelerator.sync_gradients:
                self._steps.average(self.layout["processes"])
        self._curves.add(loss.detach())
        return loss

    def _graphed_steps(self, model: Any) -> GraphedSteps:
        # torch's DDP would send gradients from within the backward pass; here they are sent after it.
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        recorder, follows = CudaRecorder(), follows_recorded(inner)
        validate = super().prediction_step
        self._validation = GraphedCalls(
            lambda batch, _: validate(inner, batch, prediction_loss_only=True)[0], recorder=recorder, follows=follows
        )
        return GraphedSteps(
            partial(super().training_step, inner),
            self.trained,
            recorder=recorder,
            follows=follows,
            required=self.graphs == "on",
        )

    def _drop_gradients(self) -> None:
        """What the Trainer asks of the model after each step, which visits all its modules: 6 ms of an adapter's 25."""
        for parameter in self.trained:
            parameter.grad = None

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any) -> Any:
        inputs = own_rows(inputs, self.accelerator.gradient_state, self.args.eval_batch_size)
        if self._validation is None or not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        return self._validation(self._prepare_inputs(inputs)), None, None

    def close_graphs(self) -> None:
        """Give the memory of the graphs back: what was trained is evaluated next."""
        if self._steps is not None and self._validation is not None:
            self._said = {**self._steps.report(), "validation": self._validation.report()}
            self._steps.close()
            self._validation.close()

    def graphs_report(self) -> dict[str, Any]:
        """Return what a record says of the graphs of this process, and of what their few shapes cost."""
        counts = self._said or {"reason": self.graphs_obstacle}
        tokens, useful = self._curves.tokens, self._curves.useful_tokens
        share = (tokens - useful) / tokens if tokens else 0.0
        return {"asked": self.graphs, **counts, "padded_tokens": tokens - useful, "padded_share": share}

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        if self._operations_per_token is None:  # linear in the tokens; counting the weights visits every module
            self._operations_per_token = int(super().floating_point_ops(inputs)) // inputs["input_ids"].numel()
        return self._operations_per_token * int(inputs["input_ids"].numel())

    def _clip_grad_norm(self, model: Any) -> Any:
        return self._clip(self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return grad_norm if grad_norm is not None else self._clip(float("inf"))

    def _clip(self, largest: float) -> Any:
        """Return the norm, whose bits do not depend on how gradients are split: accelerate sums them in float32.

        It stays on the device until it is logged; under DeepSpeed the Trainer waits for it at every step.
        """
        if self.is_deepspeed_enabled:  # its engine has clipped
            return self.accelerator.clip_grad_norm_(self.trained, largest)
        return clip(self.trained, largest)

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        return self.order

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # What the Trainer counts of a validation batch is of all processes together; the objective has its own measure.
        items = num_items_in_batch if model.training else None
        loss, outputs = self.objective(model, inputs, items)
        if model.training:
            loss = loss * self.accelerator.num_processes  # their gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def compute_loss_context_manager(self) -> Any:
        if self.is_deepspeed_enabled and self.computes_in_bfloat16:
            return torch.autocast(self.args.device.type, torch.bfloat16)
        return super().compute_loss_context_manager()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        begun = time.monotonic()
        self._curves.flush(self.state)  # a checkpoint without the losses before it would leave a hole after a resume
        self.selection.wait()  # nor may what was chosen before it be lost
        super()._save_checkpoint(model, trial)
        processes.barrier()  # every process has written its part
        if self.is_world_process_zero():
            checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            self._curves.copy_to(checkpoint)
            seal(checkpoint, self.layout)
            prune(checkpoint.parent, self.keep_checkpoints)
        self.clock.written(begun)


class _ShardedTrainer(ShardedTrainer, _Trainer):
    pass
