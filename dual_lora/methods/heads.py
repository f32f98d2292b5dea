"""The task's head: the modules outside the pretrained base that start untrained and are trained whole."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from dual_lora.models.head import HEADS


def unwrapped(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def head_modules(model: nn.Module) -> list[str]:
    """Return the head's modules: `classifier`, `score`, `pooler` (BERT's: `bert.pooler`); none for a language model.

    The LoRA repository's GLUE runs train the same ones: all that lies outside the encoder (`run_glue.py`). BERT's
    pooler lies inside transformers' encoder, but is the layer that RoBERTa and DeBERTa have outside (`models.head`).
    What a model is shows in its parts, not in the name of its class: one that writes has an output embedding.
    """
    inner = unwrapped(model)
    if not isinstance(inner, PreTrainedModel) or inner.get_output_embeddings() is not None:
        return []
    prefix = inner.base_model_prefix
    outside = [
        name for name, child in inner.named_children() if name != prefix and any(True for _ in child.parameters())
    ]
    inside = [name for name in HEADS.get(inner.config.model_type, ()) if name.startswith(f"{prefix}.")]
    return inside + outside


def is_head_parameter(model: nn.Module, name: str) -> bool:
    """Whether a parameter of `model` (by its name in `named_parameters`) belongs to the head."""
    inner_name = name.removeprefix("base_model.model.") if isinstance(model, PeftModel) else name
    return inner_name.startswith(tuple(f"{module}." for module in head_modules(model)))
