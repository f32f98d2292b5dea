"""What tools of PEFT's users do with an adapter: find its parameters by name, copy it, put hooks on its modules."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from torch import nn

from tests.unit.tuner.tiny_adapted_model import logits, make_base, make_config, train_a_little


def adapted(**settings: object) -> nn.Module:
    return get_peft_model(make_base("llama"), make_config("llama", **settings))


def test_nothing_is_taken_for_loras_by_its_name():
    """LoRA+ looks for `lora_B`, LoRA-FA freezes `lora_A`; other tools look for `lora_` or `.lora`."""
    model = adapted(subtract_start=True)
    names = [name for name, _ in (*model.named_parameters(), *model.named_modules())]
    assert not [name for name in names if "lora_" in name or ".lora" in name]
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    assert {group["lr"] for group in optimizer.param_groups if group["params"]} == {1e-3}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    create_lorafa_optimizer(model, r=8, lora_alpha=16, lr=1e-3)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


@pytest.mark.parametrize("subtract_start", [False, True])
def test_a_copy_by_the_adapters_name_is_the_same_adapter(subtract_start):
    """As TRL makes the reference of a policy that is a PeftModel (`DPOTrainer`, `GRPOTrainer`, `KTOTrainer`, …)."""
    model = adapted(subtract_start=subtract_start).train()
    train_a_little(model)
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    policy = logits(model.eval())
    model.set_adapter("ref")
    assert torch.equal(logits(model), policy)
    with model.disable_adapter():
        assert not torch.equal(logits(model), policy)


@pytest.mark.parametrize("subtract_start", [False, True])
@pytest.mark.parametrize("offload", [cpu_offload, disk_offload], ids=lambda function: function.__name__)
def test_an_offloaded_adapter_computes_what_it_did(offload, subtract_start, tmp_path):
    """accelerate loads a module's own parameters when that module is called, and no sooner."""
    model = adapted(subtract_start=subtract_start).train()
    train_a_little(model)
    expected = logits(model.eval())
    layer = model.base_model.dual_lora_layers()[0]
    update = layer.get_delta_weight("default")
    arguments = (tmp_path,) if offload is disk_offload else ()
    offload(model, *arguments, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    torch.testing.assert_close(logits(model), expected)
    torch.testing.assert_close(logits(model), expected)
    assert torch.equal(layer.get_delta_weight("default"), update)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


def test_trl_takes_the_policy_for_its_reference(tmp_path):
    """Policy and reference are one model at step 1, so DPO's loss is ln 2, whatever the policy."""
    trl = pytest.importorskip("trl", reason="comes with the extra dev")
    from tests.unit.tuner.preferences import pairs, word_tokenizer

    model = adapted().train()
    train_a_little(model)
    arguments = trl.DPOConfig(
        str(tmp_path), per_device_train_batch_size=4, max_steps=1, learning_rate=0.0, logging_steps=1, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(model=model, args=arguments, train_dataset=pairs(), processing_class=word_tokenizer())
    trainer.train()
    [loss] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx(0.6931, abs=1e-4)  # as logged by transformers 4; a random reference gives 0.687


def test_trl_trains_the_tokens_that_a_chat_template_adds(tmp_path):
    trl = pytest.importorskip("trl", reason="comes with the extra dev")
    from datasets import Dataset

    from tests.unit.tuner.preferences import word_tokenizer

    source = word_tokenizer()
    source.add_tokens(["<turn>"], special_tokens=True)
    source.chat_template = "{% for message in messages %}<turn> {{ message['content'] }} {% endfor %}"
    source.save_pretrained(tmp_path / "template")
    arguments = trl.SFTConfig(
        str(tmp_path), chat_template_path=str(tmp_path / "template"), per_device_train_batch_size=2, max_steps=1,
        learning_rate=0.1, report_to=[], use_cpu=True, bf16=False, save_strategy="no", gradient_checkpointing=False,
        disable_tqdm=True,
    )  # fmt: skip
    talk = [{"role": "user", "content": "w7 w8"}, {"role": "assistant", "content": "w9"}]
    trainer = trl.SFTTrainer(
        make_base("llama"), arguments, train_dataset=Dataset.from_dict({"messages": [talk] * 2}),
        processing_class=word_tokenizer(), peft_config=make_config("llama", modules_to_save=["lm_head"]),
    )  # fmt: skip
    added = len(word_tokenizer())
    [trained] = [value for name, value in trainer.model.named_parameters() if "trainable_tokens_delta" in name]
    before = trained.detach().clone()
    trainer.train()
    tokens = trainer.model.peft_config["default"].trainable_token_indices["embed_tokens"]
    assert tokens == list(range(added, added + len(trained))), "with those that fill the table up"
    assert not torch.equal(trained, before)
