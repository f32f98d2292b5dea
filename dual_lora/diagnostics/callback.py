"""Diagnostics of a training, for the record. A few steps are measured; all others cost nothing extra."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dual_lora.diagnostics.measures import agreement, numerical_rank, singular_values, stable_rank
from dual_lora.diagnostics.products import (
    ClipWatch,
    copied_factors,
    flipped_share,
    lowering_share,
    product_measures,
    signs,
    step_parts,
    untrained_update,
)
from dual_lora.diagnostics.updates import Layer, TrainedLinear, adapted_layers, has_whole_weight, oriented, whole_update
from dual_lora.kernels.spec import Factors
from dual_lora.records import read_json, replacing
from dual_lora.tuner import DualLoraLinear

_POINTS = 12  # measured steps, evenly spread, including the first and the last
_RANK_LAYERS = 24  # singular values cost seconds for a layer of a 7B model: that many layers, evenly spread


def read_report(path: Path) -> dict[str, Any] | None:
    """Return the report of a training in its folder, perhaps by an earlier process; None if there is none."""
    return read_json(path, _with_verdict)


def _with_verdict(report: dict[str, Any]) -> dict[str, Any]:
    layers = report["layers"].values()
    clipped = any(share > 0 for layer in layers for share in layer["series"].get("clipped_share", ()))
    return {**report, "clip_acted": clipped}


class DiagnosticsCallback(TrainerCallback):
    """Measures each adapted layer, or under full fine-tuning those of `trained`, at a few steps of a training.

    Once: ‖W₀‖, ‖ΔW(0)‖/‖W₀‖ at w = 1, the resolved σ. At about 12 steps: ‖ΔW‖/‖W₀‖ (w = 1), rms gradient of each
    factor, and for Dual LoRA zeros in ReLU(B A), +1 signs, max |P|, sign flips in that step, what it changed by
    magnitudes and by flips and which share of either lowers the loss, how often the straight-through clip acts. At the
    end: numerical and stable rank, with those of an untrained update of the same
    parametrisation, and the agreement with full fine-tuning if its weights are given.

    Args:
        path: JSON file in the run's folder, written with every checkpoint, so that a resumed run has the whole series.
        reference: safetensors file with the weights of the same run under full fine-tuning, names as in the base model.
        trained: the layers of full fine-tuning, from `trained_layers`.

    Only the first process measures. Layers whose weight is quantized or partitioned are left out.
    """

    def __init__(
        self, path: Path, reference: Path | None = None, trained: Mapping[str, TrainedLinear] | None = None
    ) -> None:
        self.path, self.reference, self._trained = path, reference, trained or {}
        self._report: dict[str, Any] = {"steps": [], "layers": {}}
        self._due: set[int] = set()
        self._layers: dict[str, Layer] = {}
        self._chosen: list[str] = []
        self._signs: dict[str, Tensor] = {}
        self._factors: dict[str, Factors] = {}
        self._watches: dict[str, ClipWatch] = {}
        self._gradients: dict[str, dict[str, float]] = {}

    def report(self) -> dict[str, Any]:
        """Return what was measured: `steps`, `clip_acted`, and per layer its numbers and `series` (by step)."""
        return _with_verdict(self._report)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._due = {1 + round(index * (state.max_steps - 1) / (_POINTS - 1)) for index in range(_POINTS)}
        trained = {name: layer for name, layer in self._trained.items() if has_whole_weight(layer.layer)}
        self._layers = {**trained, **adapted_layers(given["model"])}
        self._chosen = list(self._layers)[:: max(1, -(-len(self._layers) // _RANK_LAYERS))]
        if state.global_step > 0 and self._resume(state.global_step, Path(args.output_dir)):
            return
        for name, layer in self._layers.items():
            weight, start = layer.get_base_layer().weight, whole_update(layer)
            norm = float(weight.float().norm())
            entry: dict[str, Any] = {"shape": list(start.shape), "weight_norm": _short(norm), "series": {}}
            entry["start_ratio"] = _short(float(start.norm()) / norm)
            if isinstance(layer, DualLoraLinear):
                entry["init_std"] = layer.init_std[layer.active_adapters[0]]
            self._report["layers"][name] = entry

    def _resume(self, step: int, checkpoints: Path) -> bool:
        """Continue the series that were measured until this step; return whether there are any.

        Raises `ConfigError` for a damaged file: the start of a training cannot be measured later.
        """

        def until(report: dict[str, Any]) -> dict[str, Any]:
            keep = sum(1 for done in report["steps"] if done <= step)
            for entry in report["layers"].values():
                entry["series"] = {name: values[:keep] for name, values in entry["series"].items()}
            layers = {name: report["layers"][name] for name in self._layers}
            return {**report, "steps": report["steps"][:keep], "layers": layers}

        found = read_json(self.path, until, f"move {checkpoints} away to train anew")
        self._report = found or self._report
        return found is not None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if state.global_step + 1 not in self._due:
            return
        dual = {name: layer for name, layer in self._layers.items() if isinstance(layer, DualLoraLinear)}
        self._signs = {name: signs(layer) for name, layer in dual.items()}
        self._factors = {name: copied_factors(layer) for name, layer in dual.items()}
        self._watches = {name: ClipWatch(layer, keep_gradient=name in self._chosen) for name, layer in dual.items()}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if state.global_step + 1 in self._due:
            self._gradients = {name: _gradient_rms(layer) for name, layer in self._layers.items()}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if state.global_step not in self._due or not self._layers:
            return
        self._report["steps"].append(state.global_step)
        for name, layer in self._layers.items():
            entry = self._report["layers"][name]
            norm = entry["weight_norm"]
            values: dict[str, float | None] = {"update_ratio": _at_full_update(layer) / norm}
            values |= self._gradients.get(name, {})
            if isinstance(layer, DualLoraLinear):
                watch = self._watches[name]
                values |= {**product_measures(layer), **watch.remove()}
                entries = layer.in_features * layer.out_features
                values["flipped_share"] = flipped_share(self._signs[name], signs(layer), entries)
                for kind, part in zip(("magnitude", "flip"), step_parts(self._factors[name], layer), strict=True):
                    values[f"{kind}_step"] = float(part.norm()) / norm
                    if watch.gradient is not None:
                        values[f"{kind}_descent"] = lowering_share(part, watch.gradient)
            for key, value in values.items():
                entry["series"].setdefault(key, []).append(None if value is None else _short(value))
        self._signs, self._factors, self._watches, self._gradients = {}, {}, {}, {}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if state.is_world_process_zero and self._layers:
            self._write()

    def _write(self) -> None:
        with replacing(self.path) as part:
            part.write_text(json.dumps(self._report), encoding="utf-8")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        for name in self._chosen:
            self._report["layers"][name]["final"] = final_measures(self._layers[name])
        if self.reference is not None:
            for name, values in compare_with_full(self._layers, self.reference, self._chosen).items():
                self._report["layers"][name]["agreement"] = values
        if self._layers:  # only the first process has any
            self._write()


def final_measures(layer: Layer) -> dict[str, float]:
    """Return numerical and stable rank of a layer's update and, for Dual LoRA, of an untrained one."""
    update = whole_update(layer)
    found = _ranks(update, "")
    if isinstance(layer, DualLoraLinear):
        found |= _ranks(untrained_update(layer, torch.Generator().manual_seed(0)), "untrained_")
    return found


def compare_with_full(layers: Mapping[str, Layer], weights: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Return `agreement` of each layer's update with that of full fine-tuning, whose weights are `weights`."""
    found = {}
    with safe_open(weights, framework="pt") as file:
        stored = set(file.keys())
        for name in names:
            key, layer = f"{name}.weight", layers[name]
            if key in stored:
                update = whole_update(layer)
                base = layer.get_base_layer().weight.detach().to(update)
                reference = oriented(layer, file.get_tensor(key).to(base) - base)
                found[name] = {k: _short(v) for k, v in agreement(update, reference).items()}
    return found


def _ranks(update: Tensor, prefix: str) -> dict[str, float]:
    values = singular_values(update)
    rows, columns = update.shape
    return {
        f"{prefix}numerical_rank": numerical_rank(values, (rows, columns)),
        f"{prefix}stable_rank": _short(stable_rank(values)),
    }


def _at_full_update(layer: Layer) -> float:
    """Return ‖ΔW‖ at w = 1, whatever the current warm-up."""
    if not isinstance(layer, DualLoraLinear):
        return float(whole_update(layer).norm())
    factor, layer.delta_warmup = layer.delta_warmup, 1.0
    try:
        return float(whole_update(layer).norm())
    finally:
        layer.delta_warmup = factor


def _gradient_rms(layer: Layer) -> dict[str, float]:
    """Return the rms gradient of each factor: `gradient_rms_dual_lowrank_magnitude_A`, …"""
    return {
        f"gradient_rms_{name.split('.')[0]}": float(parameter.grad.float().square().mean().sqrt())
        for name, parameter in layer.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }


def _short(value: float) -> float:
    """Four significant digits: records stay readable."""
    return float(f"{value:.4g}")
