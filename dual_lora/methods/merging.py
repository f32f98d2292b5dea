"""Merged weights for evaluation and export."""

from __future__ import annotations

import logging
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from dual_lora.distributed import sharding
from dual_lora.tuner import DualLoraLinear
from dual_lora.tuner.registration import ReplaceModuleWithoutWeight

log = logging.getLogger(__name__)


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluate with the update merged into the base weights; afterwards the base weights are back, bit for bit.

    A model without an adapter is yielded as it is. So is one whose base cannot be merged in place (quantized weights,
    weights partitioned by ZeRO-3, an output layer tied to the embeddings, an update that is not finite): it computes
    base + update, which the log says. Weights that `distributed.sharding` has split are merged one layer at a time,
    each whole meanwhile: every process has to call this.
    PEFT's own unmerge subtracts the update, which in bfloat16 does not restore the base, so the adapted weights are
    kept on the host until then. Dual LoRA keeps them itself.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not isinstance(model, PeftModel) or not layers:
        yield model
        return
    sharded = sharding.is_sharded(model)
    reason = _cannot_merge(model, layers, one_by_one=sharded)
    if reason:
        log.warning("evaluating unmerged: %s", reason)
        yield model
        return
    kept = _copies(layers, sharded)
    try:
        if sharded:
            _merge_one_by_one(layers)
        else:
            model.merge_adapter(safe_merge=True)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        log.warning("evaluating unmerged: %s", error)
        _restore(model, kept)
    try:
        yield model
    finally:
        _restore(model, kept)


def export_merged(model: nn.Module) -> Any:
    """Return the plain transformers model with the update merged in, e.g. to `save_pretrained` it. Consumes `model`.

    Raises:
        ValueError: the base cannot be merged in place; load the adapter in one process on the full weights first.
    """
    if not isinstance(model, PeftModel):
        return model
    tuner = model.base_model
    reason = _cannot_merge(model, [module for module in model.modules() if isinstance(module, BaseTunerLayer)])
    if reason:
        raise ValueError(
            f"{reason}: load the saved adapter in one process on an unquantized base whose weights are not tied "
            "(tie_word_embeddings=False) and export that"
        )
    if type(tuner)._replace_module is BaseTuner._replace_module:
        # VeRA and RandLoRA crash on classification heads (see dual_lora/tuner/registration.py).
        tuner._replace_module = types.MethodType(ReplaceModuleWithoutWeight._replace_module, tuner)
    return model.merge_and_unload(safe_merge=True)


def _merge_one_by_one(layers: list[BaseTunerLayer]) -> None:
    for layer in layers:
        with sharding.whole_inside(layer.get_base_layer()):
            layer.merge(safe_merge=True)
        if isinstance(layer, DualLoraLinear):
            layer._unmerged_weight = None  # whole; `_copies` has the rows


def _cannot_merge(model: nn.Module, layers: list[BaseTunerLayer], *, one_by_one: bool = False) -> str | None:
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for layer in layers:
        weight = layer.get_base_layer().weight
        if holders[id(weight)] > 1:
            return "an adapted weight is tied to another layer (embeddings and output), which a merge would also change"
        if hasattr(weight, "ds_id") or (hasattr(weight, "placements") and not one_by_one):
            return "the weights are split over the processes"
        if not weight.dtype.is_floating_point or hasattr(weight, "quant_state"):
            return "the base weights are quantized"
    return None


def _copies(layers: list[BaseTunerLayer], sharded: bool) -> list[tuple[nn.Parameter, torch.Tensor]]:
    copies = []
    for layer in layers:
        if sharded or not isinstance(layer, DualLoraLinear):
            for parameter in layer.get_base_layer().parameters():
                copies.append((parameter, sharding.own(parameter.detach()).to("cpu", copy=True)))
    return copies


def _restore(model: PeftModel, kept: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    merged_layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer) and module.merged]
    if sharding.is_sharded(model):
        for layer in merged_layers:
            layer.merged_adapters.clear()  # its own unmerge would need the whole weight
    elif merged_layers:
        model.unmerge_adapter()
    for parameter, copy in kept:
        sharding.write_own(parameter, copy)  # of the parameter as it is now: a safe merge puts another tensor in it
