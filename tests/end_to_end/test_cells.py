"""Whole runs on tiny models and the shipped sample: what a user types, and the record that comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.launch import launch
from dual_lora.models import random_checkpoint
from dual_lora.records import learning_rates, per_item
from dual_lora.report import item_noise
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve
from dual_lora.training import loss
from dual_lora.training.loss import token_loss

SMALL = ["data.source=sample", "profile=quick", "profile.max_steps=3", "profile.test_items=2", "launch.device=cpu"]


def cell(results: Path, *arguments: str) -> dict[str, Any]:
    (config,) = compose([*SMALL, f"results={results}", *shortly(arguments), *arguments])
    return lifecycle.run(resolve(config))


def shortly(arguments: Sequence[str]) -> list[str]:
    """A few tokens, or beams of 64 would take a third of a run, and no METEOR, whose Java takes eight seconds to start.

    tests/unit/metrics/test_e2e.py has METEOR.
    """
    few = ["protocol.decoding.max_new_tokens=8"] if {"task=e2e", "task=commonsense"} & {*arguments} else []
    return [*few, "task.metrics=[BLEU,NIST]"] if "task=e2e" in arguments else few


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("e2e", "tiny_gpt2"),
        ("commonsense", "tiny_llama"),
        ("glue/rte", "tiny_roberta"),
        ("glue/stsb", "tiny_deberta"),
    ],
)
def test_a_run_leaves_a_whole_record(task: str, model: str, tmp_path: Path) -> None:
    record = cell(tmp_path, f"task={task}", f"model={model}", "method=dual_lora")
    assert record["status"] == "finished", record.get("message")
    sections = {"identity", "scores", "curves", "cost", "execution", "origin"}
    assert set(record) == {"schema", "status", "checksum", *sections}
    assert record["identity"]["seed"] == 0
    assert record["scores"]["headline"]["metric"]
    [card] = tmp_path.glob("runs/*/adapter/README.md")
    assert record["identity"]["run_id"] in card.read_text()
    assert all(entry["items"] for entry in record["scores"]["measurements"])
    assert_items_give_the_scores(record)
    assert record["execution"]["eval_batch"] > 0
    assert [len(card) for card in record["execution"]["cards"]] == [8]
    assert [step for step, _ in record["curves"]["train_loss"]] == [1, 2, 3]
    for field in ("train_seconds", "eval_seconds", "tokens_per_second", "adapter_bytes", "trainable_parameters"):
        assert record["cost"][field] > 0, field
    assert record["cost"]["peak_memory_bytes"][0] > 0
    assert "seconds" not in json.dumps(record["scores"])
    text = (tmp_path / "records" / f"{record['identity']['run_id']}.json").read_text()
    assert json.loads(text) == record
    assert len(text.splitlines()) < 300
    [log] = (tmp_path / "runs").glob("*/curves.jsonl")
    logged = [line for line in map(json.loads, log.read_text().splitlines()) if "learning_rate" in line]
    rates = [[line["step"], pytest.approx(line["learning_rate"], rel=1e-7)] for line in logged]
    assert len(rates) == 3
    assert learning_rates(record) == rates, "what a reader derives is not what the Trainer used"


def assert_items_give_the_scores(record: dict[str, Any]) -> None:
    """What the record keeps of each item gives its metrics again, and every prediction that it is of has a hash."""
    kept = record["scores"]["per_item"]
    assert kept
    for name, metrics in kept.items():
        assert name.endswith("loss") or name in record["origin"]["predictions_sha256"]
        for entry in record["scores"]["measurements"]:
            if per_item.predictions(entry["checkpoint"], entry["split"], entry["scoring"]) != name:
                continue
            for metric in (metric for metric in metrics if entry["subset"] in metrics[metric]):
                rows = per_item.unpacked(metrics[metric][entry["subset"]])
                assert len(rows) == entry["items"]
                [value] = item_noise.value(metric, rows, np.ones((1, len(rows))))
                stated = entry["metrics"][metric]
                assert value == pytest.approx(0 if stated is None else stated, rel=2e-3, abs=2e-3), (name, metric)


@pytest.mark.parametrize("method", ["none", "full", "lora", "dora"])
def test_the_other_methods_run_the_same_way(method: str, tmp_path: Path) -> None:
    record = cell(tmp_path, "task=e2e", "model=tiny_llama", f"method={method}")
    assert record["status"] == "finished", record.get("message")
    assert bool(record["cost"]["trainable_parameters"]) == (method != "none")


def test_a_head_alone_is_trained_on_a_frozen_base(tmp_path: Path) -> None:
    record = cell(tmp_path, "task=glue/stsb", "model=tiny_roberta", "method=head", "model.dtype=bfloat16")
    assert record["status"] == "finished", record.get("message")
    assert record["cost"]["trainable_parameters_without_head"] == 0
    weights = load_file(tmp_path / "runs" / record["identity"]["run_id"] / "last.safetensors")
    assert {name.split(".")[0] for name in weights} == {"classifier"}
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert sum(tensor.numel() for tensor in weights.values()) == record["cost"]["trainable_parameters"]


def test_a_head_that_no_task_has_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method=head trains the classification head alone.*task=glue/rte"):
        cell(tmp_path, "task=e2e", "model=tiny_llama", "method=head")
    assert not list((tmp_path / "runs").glob("*"))


def test_the_same_seed_gives_the_same_record_twice_and_another_does_not(tmp_path: Path) -> None:
    arguments = ("task=e2e", "model=tiny_llama", "method=dual_lora")
    first, second = (cell(tmp_path / name, *arguments) for name in ("a", "b"))
    for section in ("identity", "scores", "curves"):
        assert first[section] == second[section]
    assert first["origin"]["predictions_sha256"] == second["origin"]["predictions_sha256"]
    other = cell(tmp_path / "c", *arguments, "seed=1")
    assert other["curves"]["train_loss"] != first["curves"]["train_loss"]


def test_the_same_command_again_runs_nothing(tmp_path: Path) -> None:
    arguments = ("task=e2e", "model=tiny_llama", "method=lora")
    first = cell(tmp_path, *arguments)
    (config,) = compose([*SMALL, f"results={tmp_path}", *arguments, *shortly(arguments)])
    path = resolve(config).record_path
    before = path.stat().st_mtime_ns
    assert lifecycle.run(resolve(config)) == first
    assert path.stat().st_mtime_ns == before


def test_accumulation_does_not_change_the_trajectory(tmp_path: Path) -> None:
    """The global batch is the recipe's: 8 × 1 and 2 × 4 are the same run, and have the same name."""
    for task, model in (
        ("e2e", "tiny_llama"),
        ("glue/rte", "tiny_llama"),
    ):  # LLaMA: no dropout, whose draws would differ
        # The loss is a mean over tokens in the first task and over examples in the second.
        arguments = (f"task={task}", f"model={model}", "method=dual_lora", "recipe.global_batch=8")
        whole = cell(tmp_path / "whole", *arguments, "launch.per_device_batch=8")
        parts = cell(tmp_path / "parts", *arguments, "launch.per_device_batch=2")
        assert whole["identity"]["run_id"] == parts["identity"]["run_id"]
        assert (whole["execution"]["accumulation"], parts["execution"]["accumulation"]) == (1, 4)
        for (_, one), (_, other) in zip(whole["curves"]["train_loss"], parts["curves"]["train_loss"], strict=True):
            # Sums in another order in float32: 1e-5 of a loss near 6 is a few units in its last place.
            assert one == pytest.approx(other, rel=1e-5)


def test_a_batch_that_does_not_divide_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"per_device_batch=3.*legal: 1, 2, 4, 8"):
        cell(tmp_path, "task=e2e", "model=tiny_llama", "recipe.global_batch=8", "launch.per_device_batch=3")
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("kind", "batch"), [("task=e2e model=tiny_llama", 4), ("task=glue/rte model=tiny_roberta", 16)]
)
def test_a_cpu_takes_small_batches_and_those_that_are_asked_for(kind: str, batch: int, tmp_path: Path) -> None:
    words = [*SMALL, *kind.split(), "recipe.global_batch=32", f"results={tmp_path}"]
    for more, expected in (([], batch), (["launch.per_device_batch=8"], 8)):
        (config,) = compose([*words, *more])
        prepared = resolve(config)
        assert prepared.config.launch.per_device_batch == expected


def test_cuda_asked_for_and_absent_is_an_error(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ConfigError, match=r"launch.device=cuda.*launch.device=cpu"):
        cell(tmp_path, "task=e2e", "model=tiny_llama", "launch.device=cuda")


def test_targets_that_match_nothing_are_recorded_as_an_error_with_the_legal_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="q_prj.*q_proj"):
        cell(tmp_path, "task=e2e", "model=tiny_llama", "method=lora", "method.target_modules=[q_prj]")


def test_a_sweep_runs_every_cell_and_prints_how_they_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = compose(
        [
            "-m",
            *SMALL,
            f"results={tmp_path}",
            "task=e2e",
            "model=tiny_llama",
            "method=none,dual_lora",
            "task.metrics=[BLEU]",
            "protocol.decoding.max_new_tokens=8",
        ]
    )
    assert launch(cells) == 0
    printed = capsys.readouterr().out
    assert "Dual LoRA" in printed
    assert "BLEU" in printed
    assert len(list((tmp_path / "records").glob("*.json"))) == 2


def test_wandb_offline_never_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    record = cell(tmp_path, "task=e2e", "model=tiny_llama", "method=lora", "tracking=wandb")
    assert record["status"] == "finished"
    runs = list((tmp_path / "runs").rglob("run-*.wandb"))
    assert runs, "tracking=wandb leaves an offline run in the run's folder"


def test_diagnostics_compare_with_full_fine_tuning_where_there_is_one(tmp_path: Path) -> None:
    arguments = ("task=e2e", "model=tiny_llama", "diagnostics=on")
    first, second = [cell(tmp_path, *arguments, "method=full", f"seed={seed}")["curves"] for seed in (0, 1)]
    for layer in first["diagnostics"]["layers"].values():
        assert "agreement" not in layer  # with another seed: there was none yet
    for layer in second["diagnostics"]["layers"].values():
        assert 0 < layer["agreement"]["cosine"] < 1
    report = cell(tmp_path, *arguments, "method=dual_lora")["curves"]["diagnostics"]
    assert report["clip_acted"] is False
    assert report["steps"] == [1, 2, 3]
    for layer in report["layers"].values():
        assert 0 < layer["start_ratio"] < 1
        assert "cosine" in layer["agreement"]


def test_a_budget_is_met_and_noted(tmp_path: Path) -> None:
    arguments = ("task=e2e", "model=tiny_llama")
    wanted = cell(tmp_path, *arguments, "method=lora", "method.r=8")["cost"]["trainable_parameters"]
    record = cell(tmp_path, *arguments, "method=dual_lora_split_1_3", "method.budget=like:lora@8")
    assert record["cost"]["trainable_parameters"] == wanted
    assert any(note.startswith("budget: ") for note in record["scores"]["notes"])


def test_training_on_answers_computes_no_logits_for_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and curves would be the same without; memory would not."""
    seen = []

    def followed(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        value, outputs = token_loss(model, batch, *args, **kwargs)
        seen.append((outputs.logits.shape[1], batch["input_ids"].numel()))
        return value, outputs

    monkeypatch.setattr(loss, "token_loss", followed)
    record = cell(tmp_path, "task=e2e", "model=tiny_gpt2", "method=lora", "protocol=strict")
    assert record["status"] == "finished", record.get("message")
    assert len(seen) >= record["cost"]["steps"]
    assert all(0 < answer < everything for answer, everything in seen)


GARBAGE = ["model=llama", "model.dimensions.hidden_size=64", "model.dimensions.intermediate_size=128"]
GARBAGE += ["model.dimensions.num_layers=2", "model.dimensions.num_heads=4", "model.dimensions.num_key_value_heads=2"]
GARBAGE += ["model.dimensions.vocab_size=512", "task=commonsense", "protocol.decoding.max_new_tokens=2"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as `run.py random-checkpoint` writes it."""
    folder = tmp_path_factory.mktemp("drawn") / "random"
    random_checkpoint.write_llama(compose([*GARBAGE, "method=none"])[0].model, folder, workers=1)
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_that_are_not_loaded_end_a_run_before_its_first_step(tmp_path: Path, drawn: Path, method: str) -> None:
    """A checkpoint that is whole by name and shape and knows nothing, as one of a broken download or conversion."""
    folder = Path(shutil.copytree(drawn, tmp_path / "garbage"))
    (folder / "random_weights.txt").unlink()
    record = cell(tmp_path, *GARBAGE, f"model.path={folder}", f"method={method}", "profile.test_items=0")
    assert record["status"] == "failed"
    assert "The base weights are not loaded" in record["message"]
    assert "steps" not in record["cost"]
    assert not list((tmp_path / "runs").glob("*/curves.jsonl")), "a step was made"


def test_a_random_checkpoint_trains_as_documented(tmp_path: Path, drawn: Path) -> None:
    record = cell(tmp_path, *GARBAGE, f"model.path={drawn}", "method=lora")
    assert record["status"] == "finished", record.get("message")
    assert record["cost"]["steps"] == 3
