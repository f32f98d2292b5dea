"""Which tensors a method trains, by name and shape, written down from the papers' definitions of methods and models."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

from torch import nn

from dual_lora.config import RunConfig
from tests.known_answers.bases import INNER, LAYERS, WIDTH

Shapes = dict[str, tuple[int, ...]]

# What is adapted: query and value (LoRA on GPT-2, RoBERTa, DeBERTa; MiniLM follows), or
# query, key, value, up and down (DoRA on LLaMA; Qwen2 and SmolLM2 follow).
_TARGETS = {
    "gpt2": ("q_proj", "v_proj"),
    "roberta": ("query", "value"),
    "bert": ("query", "value"),
    "deberta": ("query_proj", "value_proj"),
    "llama": ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj"),
}
# RandLoRA's authors run it and VeRA on every linear layer of the encoder; so do the small encoders with a random start.
_WIDER = {("roberta", "vera"), ("roberta", "randlora")}
_ATTENTION = ("query", "key", "value", "query_proj", "key_proj", "value_proj")
_EVERY_LAYER = (*_ATTENTION, "attention.output.dense", "intermediate.dense", "output.dense")
_SMALL_ENCODERS = ("small_bert", "small_roberta", "small_deberta")
# The parts that a classification task adds: all of it starts untrained, and all of it is trained.
_HEADS = {
    "roberta": {"classifier": {"dense": (WIDTH, WIDTH), "out_proj": (0, WIDTH)}},
    "bert": {"bert.pooler": {"dense": (WIDTH, WIDTH)}, "classifier": {"": (0, WIDTH)}},
    "deberta": {"pooler": {"dense": (WIDTH, WIDTH)}, "classifier": {"": (0, WIDTH)}},
}


def expected(config: RunConfig, base: nn.Module, labels: int) -> Shapes:
    """Return the tensors that a run trains. labels: outputs of the head; 0 for a causal model."""
    trains = config.method.trains
    if trains != "adapter":
        heads = tuple(_head(config.model.family, labels, adapter=False))
        chosen = {
            "everything": lambda name: True,
            "biases": lambda name: name.endswith("bias") or name in heads,
            "head": lambda name: name in heads,
        }[trains]
        return {name: tuple(parameter.shape) for name, parameter in base.named_parameters() if chosen(name)}
    family = config.model.family
    wider = (family, config.method.name) in _WIDER or config.model.name in _SMALL_ENCODERS
    targets = _EVERY_LAYER if wider else _TARGETS[family]
    shapes = dict(_head(config.model.family, labels, adapter=True).items())
    for name, out, into in _layers(config.model.family, config.model.dimensions.num_key_value_heads):
        if any(name.endswith(f".{target}") for target in targets):
            shapes |= {
                f"base_model.model.{name}.{key}": shape for key, shape in _adapter(config.method, out, into).items()
            }
    return shapes


def _head(family: str, labels: int, *, adapter: bool) -> Shapes:
    shapes: Shapes = {}
    for module, layers in _HEADS[family].items() if labels else ():
        place = f"base_model.model.{module}.modules_to_save.default" if adapter else module
        for layer, (out, into) in layers.items():
            name = f"{place}.{layer}".rstrip(".")
            shapes |= {f"{name}.weight": (out or labels, into), f"{name}.bias": (out or labels,)}
    return shapes


def _adapter(method: Any, out: int, into: int) -> Shapes:
    """Return the tensors of one adapted layer W (out × into)."""
    values = method.settings
    if method.config_class == "peft.LoraConfig":
        rank = values["r"]
        if values.get("init_lora_weights") == "pissa":
            rank = min(rank, out, into)  # a weight has no more singular directions
        shapes: Shapes = {"lora_A.default.weight": (rank, into), "lora_B.default.weight": (out, rank)}
        if values.get("use_dora"):
            shapes["lora_magnitude_vector.default.weight"] = (out,)
        return shapes
    if method.config_class == "dual_lora.DualLoraConfig":
        magnitude, direction = values["r_magnitude"], values["r_direction"]
        return {
            "dual_lowrank_magnitude_A.default.weight": (magnitude, into),
            "dual_lowrank_magnitude_B.default.weight": (out, magnitude),
            "dual_lowrank_direction_C.default.weight": (direction, into),
            "dual_lowrank_direction_D.default.weight": (out, direction),
            **({"dual_lowrank_row_scale.default.weight": (out, 1)} if values.get("normalised") else {}),
        }
    if method.config_class == "peft.VeraConfig":
        return {"vera_lambda_d.default": (values["r"],), "vera_lambda_b.default": (out,)}
    if method.config_class == "peft.RandLoraConfig":
        bases = ceil(min(out, into) / values["r"])
        return {
            "randlora_lambda.default": (values["r"], bases),
            "randlora_gamma.default": (bases, min(out, into)),
        }
    raise NotImplementedError(f"{method.config_class}: write down what it trains")


def _layers(family: str, key_value_heads: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, out and in of every linear layer of a block."""
    narrow = WIDTH // 4 * key_value_heads
    for index in range(LAYERS):
        if family == "gpt2":
            block = f"transformer.h.{index}"
            yield from ((f"{block}.attn.c_attn.{part}", WIDTH, WIDTH) for part in ("q_proj", "k_proj", "v_proj"))
        elif family in ("llama", "qwen2"):
            block = f"model.layers.{index}"
            yield from ((f"{block}.self_attn.{part}_proj", WIDTH, WIDTH) for part in "qo")
            yield from ((f"{block}.self_attn.{part}_proj", narrow, WIDTH) for part in "kv")
            yield from ((f"{block}.mlp.{part}_proj", INNER, WIDTH) for part in ("gate", "up"))
            yield f"{block}.mlp.down_proj", WIDTH, INNER
        else:
            block, ending = f"{family}.encoder.layer.{index}", "_proj" if family == "deberta" else ""
            yield from ((f"{block}.attention.self.{part}{ending}", WIDTH, WIDTH) for part in ("query", "key", "value"))
            yield f"{block}.attention.output.dense", WIDTH, WIDTH
            yield f"{block}.intermediate.dense", INNER, WIDTH
            yield f"{block}.output.dense", WIDTH, INNER
