"""The head of a model: its modules outside the pretrained base, initialized from the run's seed, trained in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from torch.nn.utils import skip_init
from transformers import PreTrainedModel

# Modules that a classification head adds to the base. Poolers too: DeBERTa's is in no pretrained checkpoint, and BERT's
# was trained for another purpose or for none (sentence encoders average tokens instead: all-MiniLM's is unused). A
# frozen one between adapters and classifier hinders them; RoBERTa's head has the same layer, trained.
HEADS = {
    "gpt2": ("score",),
    "llama": ("score",),
    "qwen2": ("score",),
    "roberta": ("classifier",),
    "bert": ("bert.pooler", "classifier"),
    "deberta": ("classifier", "pooler"),
}


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever dtype its input has and whatever autocast says.

    A head is trained, and small steps of a weight do not survive bfloat16. Its output in bfloat16 would be on a
    grid: STS-B's similarities from 2 to 4 would be 1/64 apart, so items that the model tells apart would tie.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def draw_head(net: PreTrainedModel, modules: tuple[str, ...], seed: int) -> None:
    """Replace the linear layers of the head by new ones in float32: weights N(0, initializer_range²), biases 0.

    That is how transformers draws them; here the result is the same on every device and for every dtype of the base.
    Under ZeRO-3 the new layers stay whole until DeepSpeed shards them with the rest when training begins.
    """
    generator = torch.Generator().manual_seed(seed)
    std = net.config.initializer_range
    for name in sorted(modules):
        inside = net.get_submodule(name).named_modules(prefix=name)
        for place, old in [(place, layer) for place, layer in inside if isinstance(layer, nn.Linear)]:
            sizes = old.in_features, old.out_features
            # Not initialised: the constructor would draw from the global random state.
            layer = skip_init(Float32Linear, *sizes, bias=old.bias is not None, dtype=torch.float32)
            with torch.no_grad():
                layer.weight.normal_(0.0, std, generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()
            net.set_submodule(place, layer)


def unwrapped(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def head_modules(model: nn.Module) -> list[str]:
    """Return the head's modules: `classifier`, `score`, `pooler` (BERT's: `bert.pooler`); none for a language model.

    The LoRA repository's GLUE runs train the same ones: all that is outside the encoder (`run_glue.py`). BERT's pooler
    is inside transformers' encoder, but is the layer that RoBERTa and DeBERTa have outside (`HEADS`). The kind of a
    model is found in its parts, not in the name of its class: a language model has an output embedding.
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
