"""From the dimensions in a model's YAML to a transformers config: for random models, and to check real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dual_lora.config import ModelConfig, ModelError
from dual_lora.models.shapes import CAUSAL_FAMILIES, has_convolution

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODEL_TYPES = {"deberta": "deberta-v2"}  # transformers' `model_type`, where it is not the family's name


def model_type(model: ModelConfig) -> str:
    """Return transformers' `model_type` of the model's family."""
    return MODEL_TYPES.get(model.family, model.family)


def transformers_config(model: ModelConfig, **settings: Any) -> PretrainedConfig:
    """Return a config of the model's architecture and sizes; `settings` are further fields of the config."""
    from transformers import AutoConfig

    d = model.dimensions
    sizes: dict[str, Any] = {"vocab_size": d.vocab_size, "tie_word_embeddings": d.tied_embeddings}
    if model.family == "gpt2":
        sizes |= {"n_embd": d.hidden_size, "n_inner": d.intermediate_size, "n_layer": d.num_layers}
        sizes |= {"n_head": d.num_heads, "n_positions": d.max_positions}
    else:
        sizes |= {"hidden_size": d.hidden_size, "intermediate_size": d.intermediate_size}
        sizes |= {"num_hidden_layers": d.num_layers, "num_attention_heads": d.num_heads}
    if model.family in ("llama", "qwen2"):
        sizes["num_key_value_heads"] = d.num_key_value_heads
    if model.family == "bert":
        sizes |= {"max_position_embeddings": d.max_positions, "type_vocab_size": 2}
    if model.family == "roberta":
        sizes |= {"max_position_embeddings": d.max_positions, "type_vocab_size": 1}
    if model.family == "deberta":
        sizes |= _deberta_settings(model)
    return AutoConfig.for_model(model_type(model), **(sizes | settings))


def _deberta_settings(model: ModelConfig) -> dict[str, Any]:
    """Return what DeBERTa v2 and v3 checkpoints set besides their sizes (config.json of microsoft/deberta-v3-base)."""
    buckets = model.dimensions.max_positions // 2  # one row for each direction
    settings = {
        "relative_attention": True,
        "position_buckets": buckets,
        "max_relative_positions": -1,
        "max_position_embeddings": 512,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
    }
    if has_convolution(model):
        settings |= {"conv_kernel_size": 3, "conv_act": "gelu"}
    return settings


def check_dimensions(model: ModelConfig, config: PretrainedConfig) -> None:
    """Refuse a checkpoint that is not what the YAML says. Raises `ModelError` naming every difference and the override.

    A local folder may have another model than the one named on the command line; the counts of `plan=true` and the
    recipe would then be wrong.
    """
    where = model.path or model.repository
    if config.model_type != model_type(model):
        raise ModelError(
            f"model={model.name} is of family {model.family}, but {where} has a {config.model_type!r} model; "
            f"choose a model of that family, with model.path={where}"
        )
    found, expected = _dimensions(config), model.dimensions
    different = {
        name: value
        for name, value in found.items()
        if value != getattr(expected, name) and not (name == "max_positions" and not expected.max_positions)
    }
    if different:
        wanted = ", ".join(f"{name} {getattr(expected, name)}" for name in different)
        raise ModelError(
            f"{where} is not model={model.name}: expected {wanted}. To use it anyway, give "
            f"{' '.join(f'model.dimensions.{name}={value}' for name, value in different.items())}"
        )


def _dimensions(config: PretrainedConfig) -> dict[str, Any]:
    hidden = config.hidden_size
    found = {
        "hidden_size": hidden,
        "intermediate_size": getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or 4 * hidden,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "vocab_size": config.vocab_size,
    }
    if config.model_type in CAUSAL_FAMILIES:
        found["tied_embeddings"] = config.tie_word_embeddings
    if config.model_type == "deberta-v2":
        buckets = getattr(config, "position_buckets", -1)
        rows = buckets if buckets > 0 else config.max_relative_positions
        return found | {"max_positions": 2 * rows}
    return found | {"max_positions": config.max_position_embeddings}
