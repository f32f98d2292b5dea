"""Base models: where they come from, what identifies them, how they are loaded, how large they are.

    loaded = load(config.model, task.head, dtype=resolve_dtype(config.model, device), seed=config.seed, device=device)

What `plan=true` and the checks before a run need is imported without torch; `load` and the GPT-2 helpers import it on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dual_lora.config import ModelError
from dual_lora.models.dtypes import resolve_dtype
from dual_lora.models.shapes import LayerShape, adapted_layer_shapes, count_biases, count_parameters, head_parameters
from dual_lora.models.sources import check_available, fingerprint, is_pretrained, tokenizer_file

if TYPE_CHECKING:
    from dual_lora.models.gpt2 import adapter_base_class, fuse_attention, split_attention
    from dual_lora.models.loading import LoadedModel, load

_HEAVY = {
    **dict.fromkeys(("load", "LoadedModel"), "loading"),
    **dict.fromkeys(("adapter_base_class", "fuse_attention", "split_attention"), "gpt2"),
}


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(importlib.import_module(f"dual_lora.models.{_HEAVY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
