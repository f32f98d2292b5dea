"""How long a run takes a GPU, estimated from what was measured (results/benchmarks) and the card's data sheet.

    seconds = estimate(resolved, lengths, card)   # {"start": .., "training": .., "evaluation": ..}, alone on the card
    gpu_hours(resolved, lengths, card)            # what the run costs, with launch.parallel runs at a time

A step is as long as its kernels, or without graphs as its launches on the host if these take longer. The kernels' time
is that of the products, at the rate of LLaMA-7B's steps, and a time for each layer, however small: `_STEPS` has both by
method.

It is for choosing what to run, not for timing: `ERRORS` is how far it is from the committed records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from dual_lora import models
from dual_lora.config import evaluation_batches
from dual_lora.config.schedule import plan_validation, planned_obstacle
from dual_lora.runs.cards import MEASURED, Card
from dual_lora.runs.resolve import Resolved
from dual_lora.tasks.lengths import Lengths

# |estimate / measured - 1| of training and evaluation of the committed records of a model: median, 90th percentile. No
# whole run of other models, which are larger, is recorded.
ERRORS = {
    "minilm": (0.18, 0.68),
    "small_bert": (0.25, 0.87),
    "small_deberta": (0.40, 0.82),
    "small_gpt2": (0.33, 0.48),
    "small_llama": (0.39, 0.64),
    "small_roberta": (0.18, 0.67),
    "smollm2": (0.19, 0.44),
}


class _Step(NamedTuple):
    """Of a training step on an H200: TFLOP/s of its products, ms a layer of kernels, ms a layer of launches."""

    rate: float
    layer: float
    host: float


# results/benchmarks/graphs.json: kernels (`busy_ms`) of LLaMA-7B with 16 × 112 tokens and SmolLM2-135M with 16 × 128
# are a × FLOPs + b × layers; `host` is SmolLM2's step without graphs.
_STEPS = {
    "lora": _Step(403, 0.64, 6.7),
    "dora": _Step(179, 1.12, 9.8),
    "dual_lora": _Step(346, 0.54, 6.3),
    "full": _Step(403, 0.55, 3.8),
    "head": _Step(403, 0.2, 1.3),
}
_BESIDES_GRAPHS = 4.5  # ms: a step with graphs less its kernels (SmolLM2 4.2, LLaMA-7B 6.6)
_RECORDING = 0.5  # s for each length a step is recorded for (graphs.json, runs: first steps of MiniLM and LLaMA-2-7B)
_FORWARD = 350  # TFLOP/s without gradients
_TOKEN, _TOKEN_WITHOUT_GRAPHS = 0.28, 1.0  # ms a layer and decoding step (training_generation.json; evaluation_*.json)
_BATCH = 0.05  # s of a batch besides its products: tokens to text, and kept
# s of the host: a ranked candidate, a generated reply, a step of a beam search (commonsense, E2E and WebNLG records).
_CANDIDATE, _REPLY, _BEAMS = 1e-3, 3e-3, 20e-3
# What a run costs when n share a card: n^-x of its time alone. MiniLM, 24 at a time (E2); SmolLM2, up to 14 (E1, E3).
_SHARED, _SHARED_BY_LARGER, _LARGER = 0.8, 0.4, 5e7
_IMPORTS, _READ = 15.0, 1.5e9  # s; bytes a second of weights


def accuracy(names: Iterable[str]) -> str:
    """Return how far estimates for these models were from recorded runs of them, in words."""
    names = list(dict.fromkeys(names))
    unmeasured = [name for name in names if name not in ERRORS]
    if unmeasured:
        return f"how far off is not known: no whole run of {', '.join(unmeasured)} is recorded"
    half, nine = (f"{100 * max(ERRORS[name][place] for name in names):.0f} %" for place in (0, 1))
    return f"half of the recorded runs of {', '.join(names)} within {half}, nine in ten within {nine}"


def estimate(resolved: Resolved, lengths: Lengths, card: Card) -> dict[str, float]:
    """Return the seconds of a run's parts on a GPU of its own. The devices of one run share its work."""
    config = resolved.config
    speed = (card.tflops or MEASURED.tflops or 1.0) / (MEASURED.tflops or 1.0)
    weights = models.count_parameters(config.model, resolved.task.head)
    return {
        "start": _IMPORTS + 2 * weights / _READ,
        "training": _training(resolved, lengths, speed, weights),
        "evaluation": _evaluation(resolved, lengths, speed, weights),
    }


def gpu_hours(resolved: Resolved, lengths: Lengths, card: Card) -> float:
    """Return the GPU-hours that a run costs: those of all its devices, its share where several runs have one card."""
    launch = resolved.config.launch
    cost = sum(estimate(resolved, lengths, card).values()) / 3600 * resolved.batches.world_size
    return cost * share(resolved, launch.parallel if launch.name == "local" else 1)


def rounded(hours: float) -> float:
    """Return hours to three digits, as a plan prints them and adds them up."""
    return float(f"{hours:.3g}")


def share(resolved: Resolved, runs: float) -> float:
    """Return what a run costs of its time alone if so many share its card."""
    larger = models.count_parameters(resolved.config.model, resolved.task.head) > _LARGER
    return float(runs ** -(_SHARED_BY_LARGER if larger else _SHARED))


def _training(resolved: Resolved, lengths: Lengths, speed: float, weights: int) -> float:
    config, batches = resolved.config, resolved.batches
    if config.method.trains == "nothing":
        return 0.0
    graphs = planned_obstacle(config.launch, config.method) is None
    length = lengths.padded(config.recipe.global_batch, grouped=config.recipe.length_grouped)
    step = _step(resolved, batches.per_device * length, speed, weights, graphs)
    trained = resolved.steps * batches.accumulation * step + (12 * _RECORDING if graphs else 0.0)
    every = plan_validation(config, resolved.steps, resolved.steps_per_epoch)
    items = lengths.validation
    rows = evaluation_batches.validated_in_training(config.launch, batches.per_device)
    forward = 0.4 * _step(resolved, min(rows, items) * length, speed, weights, graphs)
    validated = resolved.steps // max(every, 1) * math.ceil(items / (rows * batches.world_size)) * forward
    return trained + validated


def _step(resolved: Resolved, tokens: float, speed: float, weights: int, graphs: bool) -> float:
    """Return the seconds of a micro-step of one device."""
    method = resolved.config.method
    kind = "dual_lora" if (method.config_class or "").endswith("DualLoraConfig") else "lora"
    kind = "dora" if method.settings.get("use_dora") else kind
    kind = {"everything": "full", "biases": "full", "head": "head"}.get(method.trains, kind)
    found, layers = _STEPS[kind], resolved.config.model.dimensions.num_layers
    # Forward, and of the backward pass the inputs' gradients; trained weights have their own product.
    passes = {"full": 6, "head": 2}.get(kind, 4) + (2 if resolved.config.launch.gradient_checkpointing else 0)
    kernels = passes * weights * tokens / (found.rate * 1e12 * speed) + found.layer * layers / 1e3
    if graphs:
        return kernels + _BESIDES_GRAPHS / 1e3
    return max(kernels, found.host * layers / 1e3)


def _evaluation(resolved: Resolved, lengths: Lengths, speed: float, weights: int) -> float:
    config, layers = resolved.config, resolved.config.model.dimensions.num_layers
    items = lengths.test
    if not items:
        return 0.0
    forward = 2 * weights / (_FORWARD * 1e12 * speed)  # s a token
    checkpoints = len({"last", config.protocol.checkpoint, *config.protocol.also_report})
    if resolved.task.head.kind == "classification":
        batches = math.ceil(items / evaluation_batches.classified(config.launch))
        return items * lengths.prompt[0] * forward + batches * _BATCH
    decoding, total = config.protocol.decoding, 0.0
    for scoring in resolved.task.scorings:
        if scoring != "generate":
            ranked = items * lengths.candidates
            count = math.ceil(ranked / evaluation_batches.candidates(config.launch, parameters=weights))
            total += items * (lengths.prompt[0] + lengths.candidates * 8) * forward + count * (_BATCH + layers * 2e-3)
            total += ranked * _CANDIDATE
            continue
        count = math.ceil(items / evaluation_batches.prompts(config.launch, decoding.beams, parameters=weights))
        token = (_TOKEN if config.launch.graphs != "off" else _TOKEN_WITHOUT_GRAPHS) * layers / 1e3
        moved = 2 * weights / 3e12  # weights are read once a token, at 3 TB/s
        tokens = decoding.max_new_tokens if not resolved.task.settles_early else min(decoding.max_new_tokens, 12)
        token += moved + (_BEAMS if decoding.beams > 1 else 0.0)
        total += items * (lengths.prompt[0] * forward + _REPLY) + count * (_BATCH + tokens * token)
    return total * (checkpoints if config.method.trains != "nothing" and config.protocol.checkpoint != "last" else 1)
