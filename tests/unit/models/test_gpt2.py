"""GPT-2 with query, key and value apart: the same model, every PEFT method on two of them alone, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers

import dual_lora
from dual_lora import methods
from dual_lora.methods.budget import read_method
from dual_lora.models import ModelError, adapter_base_class, fuse_attention, load, split_attention
from dual_lora.models.gpt2 import SplitGPT2ForSequenceClassification, SplitGPT2LMHeadModel
from dual_lora.tasks.base import Head
from tests.unit.models.shipped import model_config

GENERATE = Head("causal_lm")
CLASSIFY = Head("classification", num_labels=3)
IDS = torch.arange(40).view(2, 20) % 37


def tiny(head: Head = GENERATE, *, split: bool = True, dtype: str = "float32") -> transformers.PreTrainedModel:
    return load(model_config("tiny_gpt2", split_fused_attention=split), head, dtype=dtype, seed=0).model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("head", [GENERATE, CLASSIFY], ids=["generate", "classify"])
def test_splitting_changes_no_weight_and_no_output_beyond_rounding(head: Head) -> None:
    stock, split = tiny(head, split=False), tiny(head)
    for block, parts in zip(stock.transformer.h, split.transformer.h, strict=True):
        thirds = block.attn.c_attn.weight.chunk(3, dim=1)
        for name, third in zip(("q_proj", "k_proj", "v_proj"), thirds, strict=True):
            assert torch.equal(parts.attn.c_attn.get_submodule(name).weight, third.t())
    # a sum of 64 products may be added up in another order: a few units in the last place, through two layers
    torch.testing.assert_close(logits(split), logits(stock), rtol=1e-5, atol=1e-5)


def test_splitting_agrees_in_float64_to_the_last_digits() -> None:
    stock = tiny(split=False).double()
    expected = logits(stock)
    torch.testing.assert_close(logits(split_attention(stock)), expected, rtol=1e-13, atol=1e-13)


def test_generation_with_its_cache_agrees_with_the_stock_model() -> None:
    stock, split = tiny(split=False), tiny()
    arguments = {"attention_mask": torch.ones(2, 8, dtype=torch.long), "max_new_tokens": 12, "do_sample": False}
    expected = stock.generate(IDS[:, :8], **arguments)
    assert torch.equal(split.generate(IDS[:, :8], **arguments), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fusing_gives_the_stock_checkpoint_back_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    stock = tiny(split=False, dtype=dtype)
    fused = fuse_attention(tiny(dtype=dtype))
    assert type(fused) is transformers.GPT2LMHeadModel
    fused.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert again.state_dict().keys() == stock.state_dict().keys()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in stock.state_dict().items())


def configs() -> dict[str, peft.PeftConfig]:
    targets = {"target_modules": ["q_proj", "v_proj"]}
    return {
        "lora": peft.LoraConfig(r=4, **targets),
        "dora": peft.LoraConfig(r=4, use_dora=True, **targets),
        "vera": peft.VeraConfig(r=4, projection_prng_key=1, **targets),
        "randlora": peft.RandLoraConfig(r=4, projection_prng_key=1, **targets),
        "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **targets),
        "hira": peft.HiraConfig(r=4, **targets),
        "miss": peft.MissConfig(r=4, **targets),
        "oft": peft.OFTConfig(oft_block_size=4, **targets),
        "dual_lora": dual_lora.DualLoraConfig(r_magnitude=2, r_direction=2, **targets),
    }


@pytest.mark.parametrize("method", list(configs()))
def test_every_method_adapts_query_and_value_and_merges_into_a_stock_gpt2(method: str) -> None:
    adapted = peft.get_peft_model(tiny(), configs()[method])
    touched = {name.split(".c_attn.")[1].split(".")[0] for name, p in adapted.named_parameters() if p.requires_grad}
    assert touched == {"q_proj", "v_proj"}
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    expected = logits(adapted.eval())
    merged = fuse_attention(adapted.merge_and_unload())
    assert type(merged) is transformers.GPT2LMHeadModel
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


def test_fusing_refuses_a_model_whose_adapter_is_not_merged_and_leaves_it_whole() -> None:
    base = tiny()
    adapted = peft.get_peft_model(base, configs()["lora"])
    with pytest.raises(ModelError, match="merge_and_unload"):
        fuse_attention(base)
    assert logits(adapted).shape == (2, 20, 512)


def test_an_adapter_says_that_it_needs_the_split_model_and_peft_finds_it(tmp_path: Path) -> None:
    """The base lies in a folder as a stock GPT-2, as on the hub; only the adapter's config knows that it was split."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny(split=False).save_pretrained(base)
    model = SplitGPT2LMHeadModel.from_pretrained(base)
    adapted = peft.get_peft_model(model, configs()["dual_lora"])
    adapted.save_pretrained(adapter)

    said = json.loads((adapter / "adapter_config.json").read_text())["auto_mapping"]
    assert said == adapter_base_class(model)
    again = peft.AutoPeftModel.from_pretrained(adapter, import_allowlist=["dual_lora"])
    assert isinstance(again.get_base_model(), SplitGPT2LMHeadModel)
    assert torch.equal(logits(again.eval()), logits(adapted.eval()))


@pytest.mark.parametrize("name", ["lora", "dual_lora"])
def test_an_adapter_of_the_suite_says_it_too_and_is_refused_by_a_stock_model(name: str, tmp_path: Path) -> None:
    """The suite's adapters have a task type, with which PEFT itself would not write what they stand on."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny(split=False).save_pretrained(base)
    config = model_config("tiny_gpt2")
    adapted = methods.apply(
        load(config, GENERATE, dtype="float32", seed=0).model,
        read_method(name),
        model_config=config,
        head=GENERATE,
        seed=0,
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    adapted.save_pretrained(adapter)
    said = json.loads((adapter / "adapter_config.json").read_text())
    assert said["task_type"] == "CAUSAL_LM"
    assert said["auto_mapping"] == {
        "base_model_class": "SplitGPT2LMHeadModel",
        "parent_library": "dual_lora.models.gpt2",
    }
    with pytest.raises(ValueError, match=r"Target modules .*(q_proj|v_proj).* not found in the base model"):
        peft.PeftModel.from_pretrained(transformers.GPT2LMHeadModel.from_pretrained(base), adapter)
    with pytest.raises(ValueError, match="Cannot use `AutoPeftModel` with a task type"):  # as docs/models.md says
        peft.AutoPeftModel.from_pretrained(adapter, import_allowlist=["dual_lora"])
    again = peft.PeftModel.from_pretrained(SplitGPT2LMHeadModel.from_pretrained(base), adapter)
    assert torch.equal(logits(again.eval()), logits(adapted.eval()))


def test_with_a_task_type_the_config_is_told_by_hand_and_keeps_it(tmp_path: Path) -> None:
    model = tiny(CLASSIFY)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], auto_mapping=adapter_base_class(model)
    )
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())["auto_mapping"]
    assert said["base_model_class"] == SplitGPT2ForSequenceClassification.__name__


def test_a_stock_model_has_nothing_to_say_and_a_split_one_is_not_split_again() -> None:
    assert adapter_base_class(tiny(split=False)) is None
    with pytest.raises(ModelError, match="not a stock GPT-2"):
        split_attention(tiny())
    stock = tiny(split=False)
    assert fuse_attention(stock) is stock
