"""What autograd keeps of a forward pass, counted tensor by tensor: no weights, no torch.

    kept_per_token(run, length)     # bytes of a token, in all layers together
    kept_per_batch(run)             # bytes whatever the batch: copies of weights

`tests/unit/runs/test_kept_tensors.py` counts the same with autograd's own hooks, for every family and method.

Names: e is the bytes of a number in a matrix product: 2 under autocast in bfloat16, else 4. h, m, kv: the widths of the
hidden state, of the feed-forward layer and of all keys. i, o: what a layer reads and writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

from dual_lora import methods, models
from dual_lora.config import MethodConfig, ModelConfig
from dual_lora.models.shapes import LayerShape, linear_layers
from dual_lora.tasks.base import Head

GATED = ("llama", "qwen2")  # families with a gate in the feed-forward layer, and RMSNorm
# PEFT casts x to the factors' float32, autocast casts it back: a copy for each layer.
_CASTS_INPUT = ("LoraConfig", "AdaLoraConfig", "HiraConfig")
# DeBERTa's is a copy in another order.
_ATTENTION_OUTPUT = ("self_attn.o_proj", "attn.c_proj", "attention.output.dense")


@dataclasses.dataclass(frozen=True)
class Setup:
    """What decides the memory of a run besides its batches."""

    model: ModelConfig
    method: MethodConfig
    head: Head
    layers: Sequence[LayerShape]  # that the method adapts
    dtype: str  # of products
    checkpointing: bool = False
    dropout: float = 0.0  # of the base
    keeps_weights: bool = False  # Dual LoRA: W₀ + ΔW stay from forward to backward (`tuner/kept_weights.py`)

    @property
    def e(self) -> int:
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def trains_base(self) -> bool:
        return self.method.trains in ("everything", "biases")

    @property
    def adapter(self) -> str:
        """The PEFT config's name; empty if the method is no adapter."""
        return (self.method.config_class or "").rpartition(".")[2]

    @property
    def adapter_dropout(self) -> float:
        values = [value for name, value in self.method.settings.items() if name.endswith("dropout")]
        return max([float(value) for value in values if isinstance(value, int | float)], default=0.0)


def trained_parameters(run: Setup) -> int:
    """Return how many parameters are trained, a new head among them."""
    head = models.head_parameters(run.model, run.head) if run.head.kind == "classification" else 0
    if run.method.trains == "nothing":
        return 0
    total = models.count_parameters(run.model, run.head) - head
    return head + methods.planned_parameters(run.method, run.layers, total=total, biases=models.count_biases(run.model))


def kept_per_token(run: Setup, length: int) -> int:
    """Return the bytes that autograd keeps of each token of a batch, in all layers together."""
    return run.model.dimensions.num_layers * _base_layer(run, length) + _adapters(run)


def kept_per_batch(run: Setup) -> int:
    """Return the bytes that autograd keeps whatever the batch: copies of weights in the products' dtype."""
    sizes = sum(i * o for _, i, o in run.layers)
    rank = run.method.settings.get("r", 0)
    found = _formed(run) * sizes
    if run.adapter in ("HiraConfig", "LoHaConfig"):
        found += run.e * sizes  # the update itself, or W₀ times it
    if run.adapter == "AdaLoraConfig" and run.e == 4:
        found += 4 * run.method.settings["init_r"] * sum(i for _, i, _ in run.layers)  # E A
    if run.adapter == "RandLoraConfig":  # n bases of rank r, scaled: both factors, or without a cast the scaled one
        for _, i, o in run.layers:
            found += run.e * -(-min(i, o) // rank) * rank * ((i + o) if run.e == 2 else min(i, o))
    if run.e == 4:
        return found
    if run.trains_base:  # the weights are float32: autocast's copies live as long as the products they are in
        linear = sum(i * o for _, i, o in linear_layers(run.model))
        return 2 * (linear + (models.head_parameters(run.model, run.head) or _vocabulary(run)))
    if run.adapter == "VeraConfig":
        return found + 2 * sum(rank * (i + o) for _, i, o in run.layers)
    if run.method.settings.get("use_dora") and run.adapter_dropout:
        found += 2 * sizes  # W₀, cast to float32 for the dropped input and back
    if run.adapter in _CASTS_INPUT:
        return found + 2 * trained_parameters(run)
    return found


def _formed(run: Setup) -> int:
    """Return the bytes kept of each weight that Dual LoRA forms: W₀ + ΔW, and more where plain PyTorch forms it."""
    settings = run.method.settings
    closed, rows = bool(settings.get("zero_start")), bool(settings.get("normalised"))
    annealed = settings.get("direction_activation") == "annealed_sign"
    if run.adapter != "DualLoraConfig" or not (closed or rows or annealed):
        return run.e if run.keeps_weights else 0
    found = run.e + 2 * 4  # U and V
    found += 0 if annealed else 4  # D C, of which V is the sign
    return found + closed + 4 * rows  # where B A is open; U V before its rows are divided


def _vocabulary(run: Setup) -> int:
    return run.model.dimensions.vocab_size * run.model.dimensions.hidden_size


def _base_layer(run: Setup, length: int) -> int:
    """Return the bytes per token of one layer without adapters."""
    d, e = run.model.dimensions, run.e
    h, m, kv = d.hidden_size, d.intermediate_size, d.hidden_size // d.num_heads * d.num_key_value_heads
    norms = 2 * (4 * h + 8)  # their inputs in float32, and a mean and a deviation
    attention = e * (2 * h + 2 * kv) + 4 * d.num_heads  # queries, keys, values, output; the log of each head's sum
    if run.model.family in GATED:
        norms -= 8  # RMSNorm has no mean
        feed_forward = 3 * e * m  # gate, its SiLU, up
        norms += 8 * h if run.method.trains == "everything" else 0  # normalised, for the gradient of the scale
    elif run.model.family == "gpt2":
        # gelu_new as transformers writes it: x³ (autocast takes powers in float32), tanh, 1 + tanh, x / 2
        feed_forward = (3 * 4 + e) * m
    else:
        feed_forward = e * m  # the input of GELU
        attention += e * length  # the mask, as numbers to add
    if run.model.family == "deberta":
        attention = _disentangled(run, length)
    dropped = 2 * h if run.dropout else 0  # masks, a byte each; attention's own draws its numbers again
    trained = (
        _inputs(run, linear_layers(run.model), own=e == 2) // d.num_layers if run.method.trains == "everything" else 0
    )
    return norms + attention + feed_forward + dropped + trained


def _disentangled(run: Setup, length: int) -> int:
    """Return the bytes per token of DeBERTa's attention, which is written out: scores by content and by position."""
    d, e = run.model.dimensions, run.e
    h, distances = d.hidden_size, d.max_positions
    # Softmax in float32; a mask and the rest for dropout; the probabilities as a factor of a product.
    scores = d.num_heads * length * (4 + ((1 + e) if run.dropout else (e if e == 2 else 0)))
    by_distance = 2 * e * d.num_heads * distances  # before those are taken that a pair of positions has
    return scores + by_distance + 4 * e * h + 2 * e * h * distances // length + length


def _inputs(run: Setup, layers: Sequence[LayerShape], own: bool, casts: bool = False) -> int:
    """Return the bytes per token of the inputs that these layers keep: for each layer, or once for those with the same.

    The input of attention's output layer is kept anyway, unless PEFT casts it.
    """
    groups: dict[Hashable, int] = {}
    for place, (name, i, _) in enumerate(layers):
        if casts or run.model.family == "deberta" or not name.endswith(_ATTENTION_OUTPUT):
            groups[place if own else (name.rpartition(".")[0], name.endswith(_ATTENTION_OUTPUT), i)] = i
    return run.e * sum(groups.values())


def _adapters(run: Setup) -> int:
    """Return the bytes per token that the adapters of all layers keep."""
    if not run.layers:
        return 0
    e, settings, dropout = run.e, run.method.settings, run.adapter_dropout > 0
    inputs, outputs = sum(i for _, i, _ in run.layers), sum(o for _, _, o in run.layers)
    masks = inputs if dropout else 0
    if run.adapter == "VeraConfig":  # A x and B (λ A x), for the gradients of the two scales; x itself is not needed
        return masks + e * (settings["r"] * len(run.layers) + outputs)
    casts = e == 2 and run.adapter in _CASTS_INPUT
    wide = e == 2 and run.model.family not in GATED  # layer norms answer in float32 under autocast
    found = masks + _inputs(run, run.layers, own=casts or wide or dropout, casts=casts or dropout)
    rank = settings.get("r" if run.adapter == "LoraConfig" else "init_r", 0)
    if run.adapter in ("LoraConfig", "AdaLoraConfig"):
        found += e * rank * len(run.layers)  # A x
    if settings.get("use_dora"):
        found += 2 * e * outputs  # W₀ x and B A x, for the gradient of the magnitude
    if run.adapter == "AdaLoraConfig" and e == 2:
        found += e * outputs  # B E A x, for the gradient of the number of ranks that it is divided by
    return found
