"""GPT-2 with its fused attention projection split into query, key and value, so that each can be adapted alone.

GPT-2 computes the three with one layer, `c_attn`, of three times the width. The papers adapt query and value only
(393,216 parameters for LoRA of rank 4 on GPT-2 Medium), and most methods adapt whole layers. Here `c_attn` becomes a
module with three ordinary linear layers `c_attn.q_proj`, `c_attn.k_proj`, `c_attn.v_proj`, which every PEFT method can
target.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dual_lora.config import ModelError

PARTS = ("q_proj", "k_proj", "v_proj")


class SplitAttentionProjection(nn.Module):
    """Replaces `c_attn`: three linear layers whose concatenated outputs are what `c_attn` returned.

    Shapes: input (..., hidden), output (..., 3 · hidden). Each part is an `nn.Linear` (out, in) holding the transposed
    third of the fused `Conv1D` (in, 3 · out); its sums run over the same products, in an order that the matrix library
    chooses by shape. Measured in float32 on a CPU (AVX2): bit for bit the stock model's outputs for GPT-2 and GPT-2
    Medium; in general equal to rounding (`tests/unit/models/test_gpt2.py`).
    """

    def __init__(self, fused: Conv1D) -> None:
        super().__init__()
        with gather_params_ctx([fused.weight, fused.bias], modifier_rank=None), torch.no_grad():
            weights, biases = fused.weight.chunk(3, dim=1), fused.bias.chunk(3)
            for name, weight, bias in zip(PARTS, weights, biases, strict=True):
                part = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
                part.weight = nn.Parameter(weight.t().contiguous(), requires_grad=fused.weight.requires_grad)
                part.bias = nn.Parameter(bias.clone(), requires_grad=fused.bias.requires_grad)
                self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(name)(x) for name in PARTS], dim=-1)

    def fused(self) -> Conv1D:
        """Return the stock layer with the weights of the three parts."""
        parts = [self.get_submodule(name) for name in PARTS]
        for name, part in zip(PARTS, parts, strict=True):
            if type(part) is not nn.Linear:
                raise ModelError(
                    f"c_attn.{name} is a {type(part).__name__}: merge the adapter (merge_and_unload) first"
                )
        weights = torch.cat([part.weight.detach().t() for part in parts], dim=1).contiguous()
        layer = Conv1D(0, 0)
        layer.nx, layer.nf = weights.shape
        layer.weight = nn.Parameter(weights)
        layer.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))
        return layer


class _SplitAttention:
    """What the two split classes share: they read a stock GPT-2 checkpoint."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a stock checkpoint, then split its attention. Arguments and results as in transformers."""
        stock = next(base for base in cls.__mro__ if base in _SPLIT)
        loaded = stock.from_pretrained(*args, **kwargs)  # type: ignore[attr-defined]
        if isinstance(loaded, tuple):  # output_loading_info=True
            return (split_attention(loaded[0]), *loaded[1:])
        return split_attention(loaded)


class SplitGPT2LMHeadModel(_SplitAttention, GPT2LMHeadModel):
    """GPT-2 for generation whose attention projections are separate layers."""


class SplitGPT2ForSequenceClassification(_SplitAttention, GPT2ForSequenceClassification):
    """GPT-2 for classification whose attention projections are separate layers."""


_SPLIT: dict[type, type] = {
    GPT2LMHeadModel: SplitGPT2LMHeadModel,
    GPT2ForSequenceClassification: SplitGPT2ForSequenceClassification,
}


def split_attention(model: GPT2PreTrainedModel) -> GPT2PreTrainedModel:
    """Split every fused attention projection, in place, and set the model's class accordingly. Returns the model.

    PEFT writes that class into `auto_mapping` of an adapter's config, see `adapter_base_class`.
    """
    if type(model) not in _SPLIT:
        raise ModelError(f"split_fused_attention: {type(model).__name__} is not a stock GPT-2 model")
    for block in model.transformer.h:
        block.attn.c_attn = SplitAttentionProjection(block.attn.c_attn)
    model.__class__ = _SPLIT[type(model)]
    return model


def fuse_attention(model: GPT2PreTrainedModel) -> GPT2PreTrainedModel:
    """Turn a split model back into a stock GPT-2, in place, e.g. to save a merged model that transformers can read.

    Raises `ModelError` while an adapter is still attached to a part. A model that is not split is returned as it is.
    """
    stock = {split: base for base, split in _SPLIT.items()}.get(type(model))
    if stock is None:
        return model
    fused = [
        block.attn.c_attn.fused() for block in model.transformer.h
    ]  # all or none: an adapter raises before any change
    for block, layer in zip(model.transformer.h, fused, strict=True):
        block.attn.c_attn = layer
    model.__class__ = stock
    return model


def adapter_base_class(model: nn.Module) -> dict[str, str] | None:
    """Return what an adapter's config has to say in PEFT's field `auto_mapping`; None for a stock model.

    PEFT fills the field itself, but only for a config without `task_type`; `AutoPeftModel.from_pretrained(folder,
    import_allowlist=["dual_lora"])` then loads the split base and the adapter. With a task type the field only tells a
    reader what is needed: PEFT's `Auto` classes do not follow it (docs/models.md says how to load the adapter).
    """
    if type(model) not in _SPLIT.values():
        return None
    return {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
