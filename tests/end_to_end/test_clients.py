"""The programs in docs/clients run, each against its library, and do what their first lines say."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertModel

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


@pytest.fixture
def texts(base: Path) -> Path:
    """What the trainers below read, next to the base; each takes the columns that it knows."""
    lines = []
    for word in range(5, 45):
        asked, answer = f"w{word} w{word + 1}", f"w{word + 2} w{word + 3}"
        roles = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append({"text": f"{asked} {answer}", "instruction": asked, "output": answer, "messages": roles})
    path = base.parent / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def program(folder: Path, *command: str) -> None:
    """Run a program of the environment in `folder`, without a network."""
    own = {"PYTHONPATH": str(ROOT), "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    own["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]


def assert_trained_and_merged(base: Path, adapter: Path, merged: Path) -> None:
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "DUAL_LORA"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).float(), adapter).eval()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(merged).float().eval()), logits(model))
    with model.disable_adapter():
        plain = logits(model)
    assert not torch.equal(logits(model), plain)


@pytest.mark.slow
def test_axolotl_trains_and_merges(base: Path, texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("axolotl")
    settings = yaml.safe_load((CLIENTS / "axolotl.yaml").read_text())
    settings |= {"base_model": str(base), "sequence_len": 32, "bf16": False}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    program(tmp_path, sys.executable, "-m", "axolotl.cli.train", "train.yaml")
    program(tmp_path, sys.executable, "-m", "axolotl.cli.merge_lora", "train.yaml", "--lora-model-dir=out")
    assert_trained_and_merged(base, tmp_path / "out", tmp_path / "out" / "merged")


@pytest.mark.slow
def test_ms_swift_trains_and_merges(base: Path, texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("swift.tuner_plugin")
    words = "--model_type llama --template dummy --max_steps 4 --save_steps 4 --torch_dtype float32 --use_cpu true"
    words += " --use_hf true --report_to none --split_dataset_ratio 0 --add_version false"
    program(tmp_path, "sh", str(CLIENTS / "ms_swift.sh"), str(base), str(texts), "out", *words.split())
    [saved] = tmp_path.glob("out/checkpoint-4")
    program(tmp_path, "swift", "export", "--adapters", str(saved), "--merge_lora", "true", "--use_hf", "true")
    assert_trained_and_merged(base, saved, saved.with_name("checkpoint-4-merged"))


@pytest.mark.slow
def test_llama_factory_trains_and_merges(base: Path, texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("llamafactory")
    columns = {"prompt": "instruction", "response": "output"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"words": {"file_name": "texts.jsonl", "columns": columns}}))
    settings = {
        "model_name_or_path": str(base), "stage": "sft", "do_train": True, "dataset_dir": ".", "dataset": "words",
        "template": "empty", "cutoff_len": 32, "output_dir": "out", "max_steps": 4, "learning_rate": 4e-4,
        "report_to": "none", "use_cpu": True,
    }  # fmt: skip
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    program(tmp_path, sys.executable, str(CLIENTS / "llama_factory.py"), "train.yaml")
    merging = {"model_name_or_path": str(base), "adapter_name_or_path": "out", "template": "empty"}
    (tmp_path / "export.yaml").write_text(yaml.safe_dump({**merging, "export_dir": "merged", "export_device": "cpu"}))
    program(tmp_path, sys.executable, "-m", "dual_lora", "exec", "llamafactory-cli", "export", "export.yaml")
    assert_trained_and_merged(base, tmp_path / "out", tmp_path / "merged")
