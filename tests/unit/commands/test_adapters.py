"""`merge` and `export-lora`: what they write is loaded by stock libraries, and computes what the adapter did."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from dual_lora.commands import main
from dual_lora.commands.export_lora import mean_loss
from tests.unit.tuner.preferences import pairs, word_tokenizer
from tests.unit.tuner.tiny_adapted_model import MODELS, logits, make_base, make_config, train_a_little


def saved(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Save a base and a trained adapter; return the logits of both together."""
    make_base(family, dtype).save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    base = type(MODELS[family]()).from_pretrained(folder / "base", dtype="auto")
    model = get_peft_model(base, make_config(family)).train()
    train_a_little(model)
    model.save_pretrained(folder / "adapter")
    return logits(model.eval().merge_and_unload())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_a_merged_checkpoint_is_the_adapter_rounded_once(family, dtype, tmp_path, capsys):
    expected = saved(family, tmp_path, dtype)
    assert main(["merge", str(tmp_path / "adapter"), f"out={tmp_path / 'out'}"]) == 0
    auto = AutoModelForSequenceClassification if family == "roberta" else AutoModelForCausalLM
    loaded = auto.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert torch.equal(logits(loaded), expected)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 64
    assert main(["merge", str(tmp_path / "adapter"), f"out={tmp_path / 'out'}"]) == 2
    assert "exists" in capsys.readouterr().err


def test_an_export_says_what_it_lost(tmp_path, capsys):
    saved("llama", tmp_path)
    texts = tmp_path / "texts.txt"
    chosen = [f"{text}\u2028w7 w8" for text in pairs(8)["chosen"]]  # a text may hold what is a line's end for Unicode
    texts.write_text("\n".join(chosen))
    command = ["export-lora", str(tmp_path / "adapter"), f"out={tmp_path / 'out'}", "rank=3", f"calibrate={texts}"]
    assert main(command) == 0
    tokenizer = word_tokenizer()
    held_out = [dict(tokenizer(text, return_tensors="pt")) for text in chosen[1::2]]
    loaded = PeftModel.from_pretrained(make_base("llama"), tmp_path / "out").eval()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| LoRA | {mean_loss(loaded, held_out):.4f} |" in card
    with loaded.disable_adapter():
        assert f"| base | {mean_loss(loaded, held_out):.4f} |" in card
    assert "4 other texts" in card
    assert f"{tmp_path / 'out'}\n" in capsys.readouterr().out


def test_a_folder_that_is_damaged_or_holds_another_adapter_is_named(tmp_path, capsys):
    saved("llama", tmp_path)
    two, damaged, empty, run, pickled = (tmp_path / name for name in ("two", "damaged", "empty", "run", "pickled"))
    for copy in (two, pickled):
        shutil.copytree(tmp_path / "base", copy)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "adapter" / file, two)
    for folder, text in ((damaged, '{"peft_type": "DUAL'), (empty, "{}")):
        shutil.copytree(tmp_path / "adapter", folder)
        (folder / "adapter_config.json").write_text(text)
    shutil.copytree(tmp_path / "adapter", run / "adapter")
    (run / "config.json").write_text("[]")
    out = f"out={tmp_path / 'out'}"
    for words, message in (
        (["merge", tmp_path / "adapter", f"base={two}", out], f"{two} has an adapter_config.json, which transformers"),
        (["export-lora", tmp_path / "adapter", f"base={two}", out], f"{two} has an adapter_config.json"),
        (["merge", damaged, out], f"{damaged}: adapter_config.json is damaged"),
        (["merge", empty, out], f"{empty} does not name its base model"),
        (["merge", tmp_path / "adapter", f"base={pickled}", out], f"base={pickled}: "),
        (["analyze", tmp_path / "adapter", f"base={pickled}"], f"base={pickled}: "),
        (["analyze", run], f"{run / 'config.json'} is damaged"),
    ):
        assert main([str(word) for word in words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "nowhere", "out=o"], "adapter_config.json is missing"),
        (["export-lora", "nowhere", "out=o", "calibrate=ADAPTER/one.txt"], "has 1 texts"),
        (["merge", "ADAPTER", "out=o", "base=nowhere"], "base=nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("llama", tmp_path)
    (tmp_path / "adapter" / "one.txt").write_text("w7 w8\n")
    assert main([word.replace("ADAPTER", str(tmp_path / "adapter")) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "o.part").exists()
