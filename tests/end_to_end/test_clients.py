"""The programs in docs/clients run, each against its library, and do what their first lines say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertModel

from dual_lora.evaluation.ranking import rank
from tests import ROOT
from tests.unit.tuner.preferences import word_tokenizer
from tests.unit.tuner.tiny_adapted_model import BERT_SIZES, logits, make_base, make_config, train_a_little

CLIENTS = ROOT / "docs" / "clients"


def run(name: str, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(CLIENTS / name), run_name="__main__")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_base("llama").save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_supervised_fine_tuning(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl", reason="comes with the extra dev")
    run("sft.py", monkeypatch, base, tmp_path / "out")
    loaded = PeftModel.from_pretrained(make_base("llama"), tmp_path / "out" / "adapter")
    assert not torch.equal(logits(loaded), logits(make_base("llama")))


def test_preferences(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl", reason="comes with the extra dev")
    model = get_peft_model(type(make_base("llama")).from_pretrained(base), make_config("llama")).train()
    train_a_little(model)
    model.save_pretrained(tmp_path / "adapter")
    run("dpo.py", monkeypatch, tmp_path / "adapter", tmp_path / "out")
    losses = capsys.readouterr().out.rpartition("losses [")[2].partition("]")[0].split(", ")
    assert float(losses[0]) == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.slow
def test_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentence_transformers")
    torch.manual_seed(0)
    BertModel(BertConfig(**BERT_SIZES)).save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    run("embeddings.py", monkeypatch, tmp_path / "base", tmp_path / "out")
    assert float(capsys.readouterr().out.rpartition("loading ")[2]) < 1e-6


@pytest.mark.slow
def test_lm_eval_gives_the_likelihoods_that_evaluate_ranks_by(base: Path, tmp_path: Path) -> None:
    """`exec lm_eval --model hf --model_args pretrained=BASE,peft=ADAPTER` makes this model and asks it this."""
    instance = pytest.importorskip("lm_eval.api.instance")
    from lm_eval.models.huggingface import HFLM

    model = get_peft_model(type(make_base("llama")).from_pretrained(base), make_config("llama")).train()
    train_a_little(model)
    model.save_pretrained(tmp_path / "adapter")
    prompts = ["w7 w8 w9", "w10 w11"]
    candidates = [[" w12", " w13 w14"], [" w15 w16 w17", " w18"]]
    theirs = HFLM(pretrained=str(base), peft=str(tmp_path / "adapter"), device="cpu", batch_size=1)
    asked = [(prompt, text) for prompt, texts in zip(prompts, candidates, strict=True) for text in texts]
    requests = [instance.Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(asked)]
    found = [value for value, _ in theirs.loglikelihood(requests, disable_tqdm=True)]
    ours = rank(model.eval(), word_tokenizer(), prompts, candidates, batch_size=2)
    assert [value for values in ours for value in values] == pytest.approx(found, rel=1e-4)
