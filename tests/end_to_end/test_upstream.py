"""What is prepared for PEFT runs and is read by PEFT."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from transformers import AutoModelForCausalLM

from dual_lora import DualLoraConfig
from tests import ROOT
from tests.unit.tuner.preferences import pairs, word_tokenizer
from tests.unit.tuner.tiny_adapted_model import logits, make_base

UPSTREAM = ROOT / "docs" / "upstream"


def test_the_example_trains_saves_and_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base("llama").save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "texts.txt").write_text("\n".join(pairs(8)["chosen"]))
    words = ["--model", tmp_path / "base", "--texts", tmp_path / "texts.txt", "--out", tmp_path / "out", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["example", *map(str, words)])
    runpy.run_path(str(UPSTREAM / "dual_lora_finetuning.py"), run_name="__main__")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged").eval()
    assert not torch.equal(logits(merged), logits(make_base("llama")))


def test_pefts_comparison_reads_the_configuration() -> None:
    [file] = UPSTREAM.rglob("adapter_config.json")
    config = PeftConfig.from_pretrained(str(file.parent))
    assert isinstance(config, DualLoraConfig)
    defaults = DualLoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    assert config.to_dict() | {"peft_version": None} == defaults.to_dict() | {"peft_version": None}
