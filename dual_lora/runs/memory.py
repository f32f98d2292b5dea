"""How much memory of a GPU a run takes at most, by arithmetic: no weights, no torch.

    parts = training(run, batch, graphs=True)           # bytes by what they are for, at the moment that takes most
    parts = validation(run, batch)                      # of a batch without gradients
    parts = generation(run, batch, beams, new_tokens)
    parts = ranking(run, batch, own)
    sum(parts.values())

What autograd keeps is counted in `kept_tensors.py`. `tests/unit/runs/test_memory.py` compares whole runs with the
committed records and benchmarks, within 10 %.
"""

from __future__ import annotations

from typing import NamedTuple

from dual_lora import models
from dual_lora.config.evaluation_batches import LOGITS_AT_ONCE
from dual_lora.models.shapes import CAUSAL_FAMILIES, linear_layers
from dual_lora.runs.kept_tensors import (
    GATED,
    Setup,
    kept_per_batch,
    kept_per_token,
    trained_parameters,
)

# cuBLAS keeps 32 MiB (on Hopper; 8 MiB on older cards) for each thread that multiplies: that of the forward pass, and
# autograd's. A recorded step has one thread, and DoRA's norms a library handle of their own in it (measured).
_LIBRARY = 32 * 2**20
# Vocabulary-sized float32 tensors at the start of the backward pass: the log-softmax that was kept, its gradient and
# the gradient of the logits.
_LOGITS_IN_TRAINING = 3 * 4
# Without gradients: their float32 copy and its log-softmax.
_LOGITS_IN_FLOAT32 = 2 * 4


class Batch(NamedTuple):
    """A padded micro-batch; `positions` of its tokens have logits over the vocabulary (0: a classifier)."""

    rows: int
    length: int
    positions: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def weights(run: Setup) -> int:
    """Return the bytes of the base and of an adapter's frozen projections."""
    # Weights that are trained themselves are held in float32 (`runs/work.py`).
    base = models.count_parameters(run.model, run.head) * (4 if run.trains_base else run.e)
    return base + 4 * _frozen_projections(run)


def _frozen_projections(run: Setup) -> int:
    """Return the numbers of VeRA's two and RandLoRA's bases, which all layers share: of the largest of them."""
    if not run.layers or run.adapter not in ("VeraConfig", "RandLoraConfig"):
        return 0
    wide, high = max(i for _, i, _ in run.layers), max(o for _, _, o in run.layers)
    if run.adapter == "RandLoraConfig":
        wide, high = max(wide, high), max(min(i, o) for _, i, o in run.layers)
    return int(run.method.settings["r"]) * (wide + high)


def moments(run: Setup) -> int:
    """Return the bytes of AdamW's two float32 moments."""
    found = 8 * trained_parameters(run)
    if run.method.optimizer.name == "galore_adamw":  # its moments are of gradients projected to a rank
        rank = run.method.optimizer.settings.get("rank", 128)
        projected = [layer for layer in linear_layers(run.model) if min(layer[1:]) > rank]
        found -= 8 * sum(i * o - rank * max(i, o) for _, i, o in projected)
    return found


def _own_weights(run: Setup) -> int:
    """Return the bytes of an adapter's or head's float32 weights."""
    return 0 if run.trains_base else 4 * trained_parameters(run)


def training(run: Setup, batch: Batch, *, graphs: bool = False, first: bool = False) -> dict[str, int]:
    """Return the bytes at the peak of a training on batches of this size, by what they are for.

    graphs: steps are CUDA graphs, whose gradients stay in one place from step to step.
    first: the batch is the run's first, when there are neither moments nor gradients of earlier steps.
    """
    handles = 2 if not graphs or run.method.settings.get("use_dora") else 1
    own = _own_weights(run)
    held = {"weights": weights(run), "optimizer": own + moments(run), "libraries": handles * _LIBRARY}
    gradients = {"gradients": 4 * trained_parameters(run)}
    if run.method.trains in ("nothing", "head"):  # no gradient enters the base
        return {**held, **gradients, "activations": batch.tokens * _unkept(run, batch.length)}
    d = run.model.dimensions
    logits = batch.positions * d.vocab_size * _LOGITS_IN_TRAINING
    kept = batch.tokens * kept_per_token(run, batch.length) + kept_per_batch(run)
    passing = batch.tokens * _passing(run) + _norms_of_weights(run)
    if run.checkpointing:
        inputs = batch.tokens * d.num_layers * d.hidden_size * (4 if run.trains_base else run.e)
        parts = {"activations": inputs, "logits or a block": max(logits, kept // d.num_layers + passing)}
    else:
        parts = {"activations": kept, "logits or a block": max(logits, passing)}
    before = {**held, "optimizer": own} if first else {**held, **(gradients if graphs else {})}
    return max({**before, **parts}, {**held, **gradients}, key=lambda moment: sum(moment.values()))


def validation_in_training(run: Setup, batch: Batch, *, graphs: bool = False) -> dict[str, int]:
    """Return the bytes at the peak of the objective's loss on a validation batch between two steps."""
    held = {"weights": weights(run), "optimizer": _own_weights(run) + moments(run), "libraries": 2 * _LIBRARY}
    logits = batch.positions * run.model.dimensions.vocab_size * (run.e + _LOGITS_IN_FLOAT32)
    return {
        **held,
        **({"gradients": 4 * trained_parameters(run)} if graphs else {}),
        "keys and values": batch.tokens * _cached(run),
        "logits or a block": max(logits, batch.tokens * _unkept(run, batch.length)),
    }


def validation(run: Setup, batch: Batch) -> dict[str, int]:
    """Return the bytes at the peak of a forward pass after training, with logits at `batch.positions`."""
    return {
        **_evaluated(run),
        "keys and values": batch.tokens * _cached(run),
        "logits or a block": max(_scored(run, batch.positions), batch.tokens * _unkept(run, batch.length)),
    }


def generation(run: Setup, batch: Batch, beams: int, new_tokens: int) -> dict[str, int]:
    """Return the bytes at the peak of generating: prompts of a batch, then replies of `beams` sequences for each."""
    sequences, whole, d = batch.rows * beams, batch.length + new_tokens, run.model.dimensions
    prompts = sequences * batch.length * _cached(run)
    replies = sequences * whole * _cached(run, static=True)
    # A beam search keeps the log-softmax, what is left of it after processing, and its sum with the beams' scores.
    logits = sequences * d.vocab_size * (run.e + _LOGITS_IN_FLOAT32 + (2 * 4 if beams > 1 else 0))
    step = max(logits, sequences * (_unkept(run, 1) + whole * _repeated(run)))
    moments = [
        (prompts // beams, batch.tokens * _unkept(run, batch.length)),
        # Copied, a layer at a time, to where there is room for the replies.
        (max(prompts + replies // d.num_layers, replies + prompts // d.num_layers), 0),
        (replies, step),
    ]
    cache, rest = max(moments, key=sum)
    return {**_evaluated(run), "keys and values": cache, "logits or a block": rest}


def ranking(run: Setup, batch: Batch, own: int) -> dict[str, int]:
    """Return the bytes at the peak of scoring candidates.

    batch: rows of candidates, with their prompts; its positions have logits. own: tokens of the longest candidate.
    """
    tokens = batch.rows * own
    attention = batch.tokens * _repeated(run) + tokens * 4 * run.e * run.model.dimensions.hidden_size
    block = max(tokens * _unkept(run, batch.length), attention)
    return {
        **_evaluated(run),
        "keys and values": batch.tokens * _cached(run),
        "logits or a block": max(_scored(run, batch.positions), block),
    }


def _scored(run: Setup, positions: int) -> int:
    """Return the bytes of logits and of those that become float32 log-probabilities at a time."""
    return run.model.dimensions.vocab_size * (positions * run.e + min(positions, LOGITS_AT_ONCE) * _LOGITS_IN_FLOAT32)


def _evaluated(run: Setup) -> dict[str, int]:
    """Return the bytes of a model that was trained, or not, and is evaluated."""
    handles = 1 if run.method.trains == "nothing" else 2
    return {"weights": weights(run) + _own_weights(run), "libraries": handles * _LIBRARY}


def _cached(run: Setup, static: bool = False) -> int:
    """Return the bytes of keys and values of a token.

    Rotary positions make float32 of the keys where weights are, and one static cache holds both in the same dtype.
    """
    d = run.model.dimensions
    if run.model.family not in CAUSAL_FAMILIES:
        return 0
    key = 4 if run.trains_base and run.model.family in GATED else run.e
    value = key if static else run.e
    return (key + value) * (d.hidden_size // d.num_heads * d.num_key_value_heads) * d.num_layers


def _repeated(run: Setup) -> int:
    """Return the bytes of a token's keys and values in a layer, repeated for grouped heads as under a mask."""
    d = run.model.dimensions
    return 2 * run.e * d.hidden_size if d.num_key_value_heads < d.num_heads else 0


def _unkept(run: Setup, length: int) -> int:
    """Return the bytes per token that are alive while a layer computes of which nothing is kept."""
    d = run.model.dimensions
    if run.model.family in GATED:  # the residual and the norm of it, the gate's SiLU, up and their product
        residual = 2 * 4 + run.e if run.trains_base else 2 * run.e
        return residual * d.hidden_size + 3 * run.e * d.intermediate_size
    scores = d.num_heads * (length * (4 + run.e) + 2 * run.e * d.max_positions) if run.model.family == "deberta" else 0
    return _passing(run) + scores


def _passing(run: Setup) -> int:
    """Return the bytes per token that are alive in a layer besides what is kept; 30 h where m = 4 h (measured).

    The two widest tensors of a feed-forward layer or their gradients, three where it is gated; in float32 the residual,
    its sum, and the norm's input.
    """
    h, m, gated = run.model.dimensions.hidden_size, run.model.dimensions.intermediate_size, run.model.family in GATED
    return 14 * h + (3 if gated else 2) * run.e * m


def _norms_of_weights(run: Setup) -> int:
    """Return the bytes in which DoRA computes the norms of a layer's rows, of its largest layer.

    W₀, B A, their sum and its parts in float32 (out × in each), and an identity (in × in) in float32 and as a factor.
    """
    if not run.method.settings.get("use_dora"):
        return 0
    return max(4 * 4 * i * o + (4 + run.e) * i * i for _, i, o in run.layers)
