"""What a run writes to disk and would fetch, in bytes, from the sizes of its model."""

from __future__ import annotations

from typing import NamedTuple

from dual_lora import models
from dual_lora.models import hub
from dual_lora.models.shapes import CAUSAL_FAMILIES
from dual_lora.runs.kept_tensors import Setup, trained_parameters
from dual_lora.runs.resolve import Resolved


class Space(NamedTuple):
    """Bytes on disk while a run works (without what stays), after its end, and to fetch from the hub."""

    checkpoints: int
    stays: int
    weights: int


def space(resolved: Resolved, run: Setup) -> Space:
    """Return what a run takes. Checkpoints hold float32 weights and two moments; their optimizer state goes at the end.

    What stays: the last weights, an adapter's folder with them, those of the best checkpoint that is reported.
    """
    config, trained = resolved.config, 4 * trained_parameters(run)
    protocol = config.protocol
    selected = len({protocol.checkpoint, *protocol.also_report} - {"last"}) if run.head.kind == "causal_lm" else 0
    selected += run.head.kind == "classification" and protocol.checkpoint != "last"
    copies = (2 if config.method.trains == "adapter" else 1) + selected if trained else 0
    return Space(config.launch.keep_checkpoints * 3 * trained, copies * trained, _weights_to_fetch(resolved))


def _weights_to_fetch(resolved: Resolved) -> int:
    """Return the bytes of a checkpoint that is on the hub and not here: LLaMA's and Qwen's are stored in 16 bits."""
    model = resolved.config.model
    if model.path or model.source != "hub" or hub.cached(model) is not None:
        return 0
    size = 2 if model.family in CAUSAL_FAMILIES and model.family != "gpt2" else 4
    return size * models.count_parameters(model, resolved.task.head)
