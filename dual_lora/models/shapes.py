"""Sizes of a model from the numbers in its YAML: parameters and adapted layers, without weights and without torch.

`plan=true` counts a 70B model in a millisecond with these formulas. `tests/unit/models/test_shapes.py` compares them
with the architectures that transformers builds, layer by layer and parameter by parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dual_lora.config import ConfigError, ModelConfig, nearest

if TYPE_CHECKING:
    from dual_lora.tasks.base import Head

CAUSAL_FAMILIES = ("gpt2", "llama", "qwen2")


class LayerShape(NamedTuple):
    """A linear layer as PEFT sees it: its name in `model.named_modules()` and its two sizes."""

    name: str
    in_features: int
    out_features: int


def count_parameters(model: ModelConfig, head: Head) -> int:
    """Return the number of parameters, shared ones (tied embeddings) counted once.

    Raises `ConfigError` if the family cannot end in this head.
    """
    check_head(model, head)
    linear = sum(i * o for _, i, o in linear_layers(model))
    return linear + _linear_biases(model) + _embeddings_and_norms(model) + head_parameters(model, head)


def head_parameters(model: ModelConfig, head: Head) -> int:
    """Return the parameters of the head: an untied output embedding, or what classification adds to the base."""
    hidden, labels = model.dimensions.hidden_size, 1 if head.regression else head.num_labels
    if head.kind == "causal_lm":
        return 0 if model.dimensions.tied_embeddings else model.dimensions.vocab_size * hidden
    if model.family in CAUSAL_FAMILIES:
        return hidden * labels  # `score` has no bias
    return hidden * hidden + hidden + hidden * labels + labels  # a dense layer (or pooler), then the classifier


def check_head(model: ModelConfig, head: Head) -> None:
    """Refuse a causal task on an encoder and a classification without labels. Raises `ConfigError`."""
    if head.kind == "causal_lm" and model.family not in CAUSAL_FAMILIES:
        raise ConfigError(
            f"model={model.name} is an encoder (family {model.family}) and writes no text; tasks that generate need a "
            f"model of the families {', '.join(CAUSAL_FAMILIES)}, e.g. model=smollm2"
        )
    if head.kind == "classification" and not head.regression and head.num_labels < 1:
        raise ConfigError(f"num_labels={head.num_labels}: a classification head needs at least 1 label")


def adapted_layer_shapes(model: ModelConfig, target_modules: Sequence[str] | str | None = None) -> list[LayerShape]:
    """Return the layers that `target_modules` selects, in the model's order.

    `target_modules` is read as PEFT reads it: names that end a layer's full name, a regular expression for whole names,
    or "all-linear" (every linear layer but the output head; a pooler is none). None: the model's own default. Raises
    `ConfigError` for a name that matches no layer.
    """
    targets = model.target_modules if target_modules is None else target_modules
    if not targets or not isinstance(targets, str | list | tuple | set):
        raise ConfigError(f"method.target_modules={targets!r}: name the layers in a list, or null for the model's own")
    layers, hidden = linear_layers(model), model.dimensions.hidden_size
    if targets == "all-linear":
        return layers + [LayerShape(name, hidden, hidden) for name in _POOLER.get(model.family, ())]
    if model.family in CAUSAL_FAMILIES:
        layers.append(LayerShape("lm_head", hidden, model.dimensions.vocab_size))
    if isinstance(targets, str):
        return _by_pattern(model, layers, targets)
    legal = sorted({layer.name.rpartition(".")[2] for layer in layers} - {"lm_head"})
    for target in targets:
        if not any(_matches(layer.name, target) for layer in layers):
            raise ConfigError(
                f"target_modules: {target!r} matches no layer of model={model.name}{nearest(target, legal) or '.'} "
                f"Its linear layers end in {', '.join(legal)}; 'all-linear' selects all of them"
            )
    return [layer for layer in layers if any(_matches(layer.name, target) for target in targets)]


def _by_pattern(model: ModelConfig, layers: list[LayerShape], pattern: str) -> list[LayerShape]:
    try:
        found = [layer for layer in layers if re.fullmatch(pattern, layer.name)]
    except re.error as error:
        raise ConfigError(f"method.target_modules={pattern!r} is not a regular expression: {error}") from None
    if not found:
        example = layers[0].name
        raise ConfigError(
            f"method.target_modules={pattern!r}: as a regular expression it matches the whole name of no layer of "
            f"model={model.name}, e.g. {example}; or give a list, [{example.rpartition('.')[2]}]"
        )
    return found


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def linear_layers(model: ModelConfig) -> list[LayerShape]:
    """Return every linear layer of the base, without embeddings and head, in the order of `named_modules()`."""
    per_layer = _LAYERS[model.family]
    return [
        LayerShape(f"{_PREFIX[model.family]}.{index}.{name}", in_features, out_features)
        for index in range(model.dimensions.num_layers)
        for name, in_features, out_features in per_layer(model)
    ]


_PREFIX = {
    "gpt2": "transformer.h",
    "llama": "model.layers",
    "qwen2": "model.layers",
    "roberta": "roberta.encoder.layer",
    "bert": "bert.encoder.layer",
    "deberta": "deberta.encoder.layer",
}


_POOLER = {"bert": ("bert.pooler.dense",), "deberta": ("pooler.dense",)}


def _gpt2_layer(model: ModelConfig) -> Iterable[tuple[str, int, int]]:
    hidden, inner = model.dimensions.hidden_size, model.dimensions.intermediate_size
    if model.split_fused_attention:
        yield from ((f"attn.c_attn.{part}", hidden, hidden) for part in ("q_proj", "k_proj", "v_proj"))
    else:
        yield "attn.c_attn", hidden, 3 * hidden
    yield from (("attn.c_proj", hidden, hidden), ("mlp.c_fc", hidden, inner), ("mlp.c_proj", inner, hidden))


def _llama_layer(model: ModelConfig) -> Iterable[tuple[str, int, int]]:
    d = model.dimensions
    key_value = d.hidden_size // d.num_heads * d.num_key_value_heads
    yield "self_attn.q_proj", d.hidden_size, d.hidden_size
    yield "self_attn.k_proj", d.hidden_size, key_value
    yield "self_attn.v_proj", d.hidden_size, key_value
    yield "self_attn.o_proj", d.hidden_size, d.hidden_size
    yield "mlp.gate_proj", d.hidden_size, d.intermediate_size
    yield "mlp.up_proj", d.hidden_size, d.intermediate_size
    yield "mlp.down_proj", d.intermediate_size, d.hidden_size


def _encoder_layer(model: ModelConfig) -> Iterable[tuple[str, int, int]]:
    hidden, inner = model.dimensions.hidden_size, model.dimensions.intermediate_size
    suffix = "_proj" if model.family == "deberta" else ""
    yield from ((f"attention.self.{part}{suffix}", hidden, hidden) for part in ("query", "key", "value"))
    yield "attention.output.dense", hidden, hidden
    yield "intermediate.dense", hidden, inner
    yield "output.dense", inner, hidden


_LAYERS = {
    "gpt2": _gpt2_layer,
    "llama": _llama_layer,
    "qwen2": _llama_layer,
    "roberta": _encoder_layer,
    "bert": _encoder_layer,
    "deberta": _encoder_layer,
}


def count_biases(model: ModelConfig) -> int:
    """Return the number of bias parameters of the base without head: of its linear layers and its layer norms.

    LLaMA has none; Qwen2 has them on query, key and value; poolers belong to the head, and the convolution of
    DeBERTa's XXL checkpoints is not counted.
    """
    norms = 2 * model.dimensions.num_layers + (2 if model.family == "deberta" else 1)  # relative positions have a norm
    return _linear_biases(model) + (0 if model.family in ("llama", "qwen2") else norms * model.dimensions.hidden_size)


def _linear_biases(model: ModelConfig) -> int:
    """Return the biases of the linear layers: all of them have one, but in LLaMA none and in Qwen2 only q, k and v."""
    layers = linear_layers(model)
    if model.family == "llama":
        return 0
    if model.family == "qwen2":
        layers = [layer for layer in layers if layer.name.endswith(("q_proj", "k_proj", "v_proj"))]
    return sum(layer.out_features for layer in layers)


def _embeddings_and_norms(model: ModelConfig) -> int:
    d = model.dimensions
    words, norm, positions = d.vocab_size * d.hidden_size, 2 * d.hidden_size, d.max_positions * d.hidden_size
    if model.family in ("llama", "qwen2"):
        return words + d.hidden_size * (2 * d.num_layers + 1)  # RMSNorm has a scale only
    if model.family == "gpt2":
        return words + positions + norm * (2 * d.num_layers + 1)
    layer_norms = norm * (2 * d.num_layers + 1)  # two a layer and one after the embeddings
    if model.family == "deberta":  # `positions`: the table of relative positions, followed by a norm of its own
        return words + positions + norm + layer_norms + _convolution(model)
    token_types = 2 if model.family == "bert" else 1
    return words + positions + token_types * d.hidden_size + layer_norms


def has_convolution(model: ModelConfig) -> bool:
    """Whether a DeBERTa model has the convolution (kernel 3) in its first layer: v2 has it, v3 does not."""
    return model.family == "deberta" and "deberta-v2" in (model.repository or "")


def _convolution(model: ModelConfig) -> int:
    hidden = model.dimensions.hidden_size
    return 3 * hidden * hidden + hidden + 2 * hidden if has_convolution(model) else 0
