"""What is asked of DeepSpeed before it prepares a model."""

from __future__ import annotations

import torch
from peft import get_peft_model

from dual_lora import DualLoraConfig
from dual_lora.distributed import deepspeed
from tests.unit.tuner.tiny_adapted_model import make_base


def test_blocks_are_gathered_whole_and_those_that_train_get_an_input_with_a_gradient():
    from deepspeed.utils import get_z3_leaf_modules

    base = make_base("llama")
    layers = base.model.layers
    model = get_peft_model(base, DualLoraConfig(r_magnitude=3, r_direction=3, layers_to_transform=[1]))
    elements = deepspeed.gather_whole_blocks(model)
    assert get_z3_leaf_modules(model) == [layers[0], layers[1]]
    assert elements == sum(parameter.numel() for parameter in layers[1].parameters())
    seen = [[], []]
    for inputs, layer in zip(seen, layers, strict=True):
        layer.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0].requires_grad))
    tokens = torch.arange(2, 12).view(1, 10)
    model(input_ids=tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        model(input_ids=tokens)
    assert seen == [[False, False], [True, False]]
