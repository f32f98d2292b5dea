"""The work of one run: load, adapt, train, evaluate. Each finished part is kept in the run folder."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from dual_lora import methods, models
from dual_lora.config import ConfigError, RunConfig
from dual_lora.diagnostics import DiagnosticsCallback, full_fine_tuning, read_report, trained_layers
from dual_lora.distributed import deepspeed, processes, sharding
from dual_lora.evaluation import build_pipeline, samples
from dual_lora.evaluation.evaluator import predictions_sha256
from dual_lora.evaluation.pipeline import Pipeline
from dual_lora.records import per_item, read_json, write_json
from dual_lora.runs import finished_training, machine, tracking, warm_start
from dual_lora.runs.garbage import uncollected
from dual_lora.runs.resolve import Resolved, budget_note
from dual_lora.tasks.encoding import rendered_sha256
from dual_lora.tasks.splits import Items
from dual_lora.training.checkpoints import resume_step
from dual_lora.training.result import TrainingResult
from dual_lora.training.trainer import Data, train

logger = logging.getLogger(__name__)
_DENSE_START = "the head's dense layer, a new output layer"


@dataclass
class Work:
    """The work of one run. The record is made from what it gathered, also if it failed halfway."""

    resolved: Resolved
    _training: TrainingResult | None = None
    _measurements: list[dict[str, Any]] = field(default_factory=list)
    _cost: dict[str, Any] = field(default_factory=dict)
    _origin: dict[str, Any] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _samples: list[dict[str, str]] = field(default_factory=list)
    _curves: dict[str, Any] = field(default_factory=dict)
    _kernels: dict[str, int] = field(default_factory=dict)
    _peak_is_own: bool = False
    _cards: list[str] = field(default_factory=list)
    _eval_batch: int | None = None
    _evaluation_graphs: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> RunConfig:
        return self.resolved.config

    @property
    def folder(self) -> Path:
        return self.resolved.folder

    def run(self) -> None:
        """Do what is left to do. Raises any error that stops it; what was gathered until then is kept."""
        resolved, config, task = self.resolved, self.resolved.config, self.resolved.task
        items = resolved.items
        assert items is not None  # only a plan's are not selected
        self._notes = list(task.notes)
        if config.recipe.is_default and config.method.trains != "nothing":
            self._notes.append(f"no recipe of its own: {config.recipe.name}")
            logger.warning("this combination has no recipe of its own; it uses %s", config.recipe.name)
        if resolved.budget is not None:
            self._notes.append(f"budget: {budget_note(resolved.budget)}")
        self._peak_is_own = machine.forget_peak_memory(resolved.device)
        model, tokenizer = self._adapted_model()
        self._count_parameters(model)
        work = build_pipeline(task, tokenizer, config, resolved.folder, resolved.dtype)
        try:
            if config.method.trains != "nothing":
                self._training = self._train(model, work, tokenizer, items)
            if str(config.method.settings.get("init_std", "")).startswith("relative:"):
                self._origin["resolved_init_std"] = model.base_model.resolved_init_std()
            deepspeed.ready_to_evaluate(model, config, resolved.batches)
            names = getattr(getattr(model, "base_model", None), "kernel_names", None)
            self._kernels = names() if names else {}  # ZeRO-3: only now it is known which weights come with their block
            begun = time.perf_counter()
            self._measurements = work.measure(model, items, self._training.selected if self._training else None)
            seconds = time.perf_counter() - begun
            self._cost["eval_seconds"] = None if work.known else seconds  # the time of a part says nothing
            self._samples = samples.for_record(task, items.test, resolved.folder / "predictions", self._shown())
        finally:
            self._notes += work.notes
            self._curves = work.curves()
            self._eval_batch, self._evaluation_graphs = work.eval_batch, work.graphs
            self._cost["peak_memory_bytes"] = self._peak_memory()
        self._cost["peak_memory_bytes"] = [peak for peaks in processes.gather(self._peak_memory()) for peak in peaks]
        self._cards = sorted(set(processes.gather(machine.card(resolved.device))))
        self._origin["predictions_sha256"] = predictions_sha256(resolved.folder / "predictions")

    def _adapted_model(self) -> tuple[torch.nn.Module, Any]:
        """Return the model as its method trains it, and its tokenizer."""
        resolved, config, head = self.resolved, self.resolved.config, self.resolved.task.head
        # Weights that are trained themselves are kept in float32, as a sum of small steps does not survive bfloat16.
        held = "float32" if config.method.trains in ("everything", "biases") else resolved.dtype
        deepspeed.trust_own_types(config)
        deepspeed.compile_nothing(config)
        sharded = deepspeed.partition_while_loading(config, resolved.batches, held)
        loaded = models.load(
            config.model,
            head,
            dtype=held,
            seed=config.seed,
            device=processes.device_name(resolved.device),
            sharded=config.launch.shards_weights,
        )
        self._notes += loaded.notes
        self._origin["start_token"] = loaded.start_token
        with sharding.whole_while_adapted():
            model = methods.apply(
                loaded.model,
                config.method,
                model_config=config.model,
                head=head,
                seed=config.seed,
                kernel=config.kernel,
            )
        if resolved.start is not None:
            warm_start.load(model, resolved.start, config.init_head)
            self._notes.append(
                f"MNLI start: the adapter's weights, {'a new head' if config.init_head == 'new' else _DENSE_START}"
            )
            self._origin["init_from"] = resolved.start.origin()
        del sharded
        return model, loaded.tokenizer

    def _count_parameters(self, model: torch.nn.Module) -> None:
        with_head, without_head = methods.trainable_parameters(model)
        self._cost.update(
            trainable_parameters=with_head,
            trainable_parameters_without_head=without_head,
            total_parameters=sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters()),
        )

    def _train(self, model: torch.nn.Module, work: Pipeline, tokenizer: Any, items: Items) -> TrainingResult:
        with uncollected():
            rows = work.rows(items.train, "training")
            self._check_rendered(rendered_sha256(rows))
            # Before checking whether training is left to do: the notes on the rows belong to every record.
            validation = work.rows(items.validation, "validation") if items.validation else []
        result = finished_training.read(self.folder, model)
        if result is None:
            work.check_base(model, items)
            watching = [*self._diagnostics(model), *tracking.live(self.config, self.resolved.identity, self.folder)]
            result = train(
                model,
                self.config,
                Data(tokenizer, work.collator(), rows, validation),
                batches=self.resolved.batches,
                dtype=self.resolved.dtype,
                folder=self.folder,
                head=self.resolved.task.head,
                callbacks=[*work.callbacks(items, lambda: resume_step(self.folder)), *watching],
            )
            finished_training.keep(self.folder, model, result)
        self._cost.update(
            train_seconds=result.seconds,
            tokens_per_second=result.tokens / result.seconds if result.seconds else None,
            useful_token_share=result.useful_tokens / result.tokens if result.tokens else None,
            train_flops=result.flops,
            adapter_bytes=(self.folder / "last.safetensors").stat().st_size,
            steps=result.steps,
        )
        return result

    def _diagnostics(self, model: torch.nn.Module) -> list[DiagnosticsCallback]:
        trains = self.config.method.trains
        if self.config.diagnostics == "off" or trains not in ("adapter", "everything"):
            return []
        full = full_fine_tuning(self.config, self.resolved.dtype)
        trained = trained_layers(model, self.config.model.target_modules) if trains == "everything" else None
        return [DiagnosticsCallback(self.folder / "diagnostics.json", full, trained)]

    def _check_rendered(self, sha256: str) -> None:
        """A resumed run must continue with exactly the same training text."""
        self._origin["rendered_sha256"] = sha256
        path = self.folder / "rendered.json"
        known = read_json(path, _sha256)
        if known is None:
            write_json(path, {"sha256": sha256})
        elif known != sha256:
            raise ConfigError(
                f"the training text differs from when this run began ({known[:12]} then, {sha256[:12]} now): data, "
                f"prompt or tokenizer changed; move {self.folder} away to start over"
            )

    def _peak_memory(self) -> list[int]:
        """Return the peak memory of this process in this run; [] where that cannot be told from an earlier run's."""
        return [machine.peak_memory(self.resolved.device)] if self._peak_is_own else []

    def memory_advice(self) -> str:
        """Return what did not fit and what to try."""
        batches = self.resolved.batches
        return (
            f"out of memory with {batches.per_device} × {self.config.recipe.max_length_tokens} tokens per device; try "
            f"launch.per_device_batch={max(1, batches.per_device // 2)} (the global batch stays), "
            "launch.gradient_checkpointing=true, or more devices with launch=fsdp; "
            "retry=true runs it again"
        )

    # What the record is made of.

    def scores(self) -> dict[str, Any]:
        if not self._measurements:
            return {"notes": self._notes}
        measurements, rows = per_item.apart(self._measurements, self._shown())
        found = {"headline": self._headline(), "measurements": measurements, "notes": self._notes}
        return found | ({"samples": self._samples} if self._samples else {}) | ({"per_item": rows} if rows else {})

    def _shown(self) -> str:
        """Return the checkpoint that the headline is of."""
        return "base" if self._training is None else self.config.protocol.checkpoint

    def _headline(self) -> dict[str, Any]:
        metric = self.config.task.headline
        checkpoint = self._shown()
        if self.config.profile.test_items == 0:
            checkpoint = "last"
            shown = self._measurements
            metric = metric if metric in shown[0]["metrics"] else "loss"
        else:
            shown = [entry for entry in self._measurements if entry["split"] == "test"]
        shown = [entry for entry in shown if entry["checkpoint"] == checkpoint]
        scoring = shown[0]["scoring"]
        entry = [entry for entry in shown if entry["scoring"] == scoring and metric in entry["metrics"]][-1]
        return {
            "metric": metric,
            "value": entry["metrics"][metric],
            "subset": entry["subset"],
            "scoring": scoring,
            "checkpoint": checkpoint,
        }

    def curves(self) -> dict[str, Any]:
        found = {**(self._training.curves if self._training else {}), **self._curves}
        report = read_report(self.folder / "diagnostics.json")
        return found if report is None else {**found, "diagnostics": report}

    def cost(self) -> dict[str, Any]:
        return self._cost

    def execution(self) -> dict[str, Any]:
        batches = self.resolved.batches
        return {
            "device": machine.device(self.resolved.device),
            "cards": self._cards or [machine.card(self.resolved.device)],
            "world_size": batches.world_size,
            "parallel": self.config.launch.parallel if self.config.launch.name == "local" else 1,
            "engine": self.config.launch.engine,
            "zero_stage": deepspeed.zero_stage(self.config, batches.world_size),
            "global_batch": batches.global_batch,
            "per_device_batch": batches.per_device,
            "accumulation": batches.accumulation,
            "eval_batch": self._eval_batch,
            "gradient_checkpointing": self.config.launch.gradient_checkpointing,
            "kernel": {"asked": self.config.kernel, "layers": self._kernels},
            "dtype": self.resolved.dtype,
            "threads": torch.get_num_threads(),
            "resumed_from": self._training.resumed_from if self._training else [],
            "graphs": self._training.graphs if self._training else {},
            "evaluation_graphs": self._evaluation_graphs,
        }

    def origin(self) -> dict[str, Any]:
        return {
            **self._origin,
            "recipe_sources": self.config.recipe.sources,
            "recipe_trials": self.config.recipe.trials,
        }


def _sha256(values: Any) -> str:
    return TypeAdapter(str).validate_python(values["sha256"])
