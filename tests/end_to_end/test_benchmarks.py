"""Every benchmark runs small on a CPU and writes what the committed files hold; kernels': tests/kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dual_lora import shipped
from dual_lora.benchmarks import export_lora, export_tables, fsdp, scaling, scaling_tables, training
from dual_lora.commands import main
from dual_lora.commands.bench import NAMES, parser_of
from dual_lora.config.compose import compose
from dual_lora.evaluation import epoch_scores
from dual_lora.launch import check, launch
from tests import ROOT
from tests.small_cells import config


def bench(*words: str, timeout: int = 600) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what starts others, or reads a variable when it is imported."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dual_lora", "bench", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def smoke(name: str, folder: Path, *words: str, file: str) -> dict[str, Any]:
    """Run a benchmark in this process and return its result file."""
    assert main(["bench", name, "--smoke", "--output", str(folder), *words]) == 0
    found = json.loads((folder / f"{file}.json").read_text())
    assert {"card", "torch"} <= found.get("environment", found.get("2", {}).get("environment")).keys()
    return found


def assert_timed(row: dict[str, float]) -> None:
    assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]


def test_training_benchmark_times_every_part(tmp_path):
    found = smoke("training", tmp_path, "--parts", "small", "dropout", file="training")
    assert "steps" not in found
    again = smoke("training", tmp_path, "--parts", "steps", "profile", file="training")
    assert again["dropout"] == found["dropout"], "parts that are not run are kept"
    for variant in ("dual_lora", "lora_fp32_factors", "lora_bf16_factors", "floor"):
        for part in ("small", "steps", "checkpointing"):
            assert_timed(again[part][variant])
    assert_timed(again["steps"]["dora_bf16_factors"])
    assert_timed(again["small_cuda_graph"]["dual_lora"])
    assert_timed(again["dropout"]["dual_lora_autocast"])
    assert sum(again["profile"]["ms_by_kind"].values()) > 0


def test_loss_positions_benchmark_times_both_ways(tmp_path):
    tiny = smoke("loss-positions", tmp_path, file="loss_positions")["tiny"]
    for way in ("everywhere", "where_the_loss_is"):
        assert_timed(tiny[way])


def test_runs_benchmark_counts_runs_with_and_without_others_at_the_same_time(tmp_path):
    found = smoke("runs", tmp_path, "--parallel", "1", "2", "--graphs", "off", file="runs")
    assert [(row["parallel"], row["runs"], row["steps"]) for row in found["rows"]] == [(1, 1, 2), (2, 2, 2)]
    for row in found["rows"]:
        assert row["runs_per_minute"] == pytest.approx(60 * row["runs"] / row["seconds"], rel=0.01)


def test_whole_run_benchmark_times_a_run_and_leaves_nothing_of_it(tmp_path):
    methods = smoke("whole-run", tmp_path, "--methods", "lora", "dual_lora", file="whole_run")["methods"]
    assert methods.keys() == {"lora", "dual_lora"}
    for row in methods.values():
        assert row["steps"] == [3, 6]
        assert 0 < row["median_ms"] < 2 * row["ms_a_step"]
        assert 0 < row["useful_tokens_s"] < row["padded_tokens_s"]
        assert {"commit", "dirty", "command"} <= row.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["whole_run.json"]


def test_whole_run_benchmark_refuses_steps_that_cannot_be_timed(tmp_path, capsys):
    assert main(["bench", "whole-run", "--smoke", "--output", str(tmp_path), "--steps", "5", "5"]) == 2
    assert "--steps 5 5" in capsys.readouterr().err


def test_start_benchmark_ends_at_the_first_step(tmp_path):
    """A fresh interpreter is what is measured: one, some seconds."""
    [row] = smoke("start", tmp_path, file="start")["rows"]
    assert row["first"]["cpu_seconds"] > 0.5


def test_passes_benchmark_times_each_part(tmp_path):
    found = smoke("passes", tmp_path, "--items", "8", file="passes")
    both = [(part, graphs) for part in ("cloze", "validation") for _ in range(2) for graphs in ("off", "auto")]
    replies = [("replies", graphs) for graphs in ("grows", "off", "auto")]
    assert [(row["part"], row["graphs"]) for row in found["rows"]] == both + replies
    assert all(row["seconds"] > 0 and row["items"] for row in found["rows"])
    assert all(row["eager"] > 0 for row in found["rows"] if row["part"] != "replies")


def test_generation_benchmark_times_the_base_and_both_forms_of_the_adapter(tmp_path):
    found = smoke("generation", tmp_path, file="training_generation")["generation"]
    assert found.keys() == {f"{name}_batch_{n}" for name in ("base", "not_merged", "merged") for n in (1, 16)}
    for row in found.values():
        assert 0 < row["generate"]["min_ms"] <= row["generate"]["max_ms"]
        assert_timed(row["cuda_graph"])


def test_export_benchmark_measures_what_the_command_writes(tmp_path):
    """Rank 64 is that of the layers here. A lower rank is compared with an export of that rank, alone."""
    assert main(["bench", "export-lora", "--smoke", "--output", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "export_lora.json").read_text())
    assert {name: next(iter(found["scores"]["base"])) for name, found in written.items()} == {
        "tiny LLaMA, E2E NLG": "loss",
        "tiny RoBERTa, RTE": "accuracy",
    }
    found = written["tiny LLaMA, E2E NLG"]
    scores = {name: values["loss"] for name, values in found["scores"].items()}
    assert len(scores) == 2 + 2 * len(export_lora.RANKS)
    assert abs(scores["base"] - scores["Dual LoRA"]) > 1e-2
    assert {"card", "torch", "peft"} <= found["environment"].keys()
    export_lora.write_smoke_run(tmp_path / "again", export_lora.SMOKE[0])
    alone = export_lora.measure(tmp_path / "again", tmp_path / "scratch", ranks=(8,))["scores"]
    for way in export_tables.WAYS:
        assert scores[f"rank 64, {way}"] == pytest.approx(scores["Dual LoRA"], abs=1e-5)
        assert alone[f"rank 8, {way}"]["loss"] == pytest.approx(scores[f"rank 8, {way}"], abs=1e-5)
        assert abs(scores[f"rank 8, {way}"] - scores["Dual LoRA"]) > 1e-3
    text = export_tables.section(written)
    assert f"| 8 | {scores['rank 8, without texts']:.4f} |" in text


def test_export_benchmark_scores_a_classifier_anew_for_every_export(tmp_path, monkeypatch):
    """A run's pipeline keeps the scores of a step, and here every model would be step 0."""
    logits = []
    predict = epoch_scores.predict
    monkeypatch.setattr(
        epoch_scores, "predict", lambda *given, **more: logits.append(predict(*given, **more)) or logits[-1]
    )
    export_lora.write_smoke_run(tmp_path / "run", export_lora.SMOKE[1])
    export_lora.measure(tmp_path / "run", tmp_path / "scratch", ranks=(64, 4))
    whole, base, rank_64, rank_4 = logits[:4]
    assert len(logits) == 2 + 2 * 2
    assert abs(rank_64 - whole).max() < 1e-4 < abs(base - whole).max()
    assert abs(rank_4 - whole).max() > 1e-4


def test_export_benchmark_needs_a_run_that_trained_an_adapter(tmp_path, capsys):
    assert main(["bench", "export-lora", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert "is not the folder of a finished run" in capsys.readouterr().err


def test_graphs_benchmark_times_both_ways(tmp_path):
    found = smoke("graphs", tmp_path, "--methods", "lora", file="graphs")
    again = smoke("graphs", tmp_path, "--methods", "dual_lora", file="graphs")
    assert again["steps"]["tiny"]["lora"] == found["steps"]["tiny"]["lora"], "methods that are not run are kept"
    for row in again["steps"]["tiny"].values():
        for way, reason in (("eager", "launch.graphs=off"), ("graph", "there is no GPU")):
            assert 0 < row[way]["min_ms"] <= row[way]["median_ms"] <= row[way]["max_ms"]
            assert row[way]["graphs"]["reason"] == reason


def test_evaluation_benchmark_compares_the_loops(tmp_path):
    words = ["items=3", "greedy=4", f"out={tmp_path / 'loops.json'}", "launch.device=cpu"]
    assert main(["bench", "evaluation", "--smoke", *words]) == 0
    found = json.loads((tmp_path / "loops.json").read_text())
    assert found["loops"].keys() == {"published", "ours, beam 4", "ours, greedy"}
    assert found["loops"]["published"]["same_reading_as_published"] == 1.0
    assert (found["items"], found["greedy"]["items"]) == (3, 4)


def test_zero_benchmark_times_both_launchers(tmp_path):
    written = smoke("zero", tmp_path, "--methods", "lora", file="zero")
    assert {"deepspeed", "peft"} <= written["environment"].keys()
    size, found = written["zero"]["size"], written["zero"]["lora"]
    for launcher in ("plain", "zero2"):
        assert found[launcher]["steps"] == size["steps"] * size["rounds"]
        assert_timed(found[launcher])
    assert found["ratio"] == found["zero2"]["median_ms"] / found["plain"]["median_ms"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the real model is timed")
def test_zero_benchmark_needs_a_gpu_for_the_real_model(tmp_path, capsys):
    assert main(["bench", "zero", "--output", str(tmp_path)]) == 2
    assert "--smoke" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_fsdp_benchmark_times_a_group_and_finds_the_losses_of_one_process(tmp_path):
    found = smoke("fsdp", tmp_path, "--methods", "dual_lora", file="fsdp")
    rows = {(row["kind"], row["checkpointing"]): row for row in found["rows"]}
    assert len(rows) == 7
    for row in rows.values():
        assert_timed(row)
    for kind in ("DDP", "fsdp"):
        row = rows[kind, False]
        assert row["efficiency"] == rows["one GPU", False]["median_ms"] / row["median_ms"]
        assert row["first_other_loss"] is None
        assert row["losses"] == rows["in turn", False]["losses"] != rows["one GPU", False]["losses"]
        assert rows[kind, True]["first_other_loss"] is None, "checkpointing changes no loss"
    again = smoke("fsdp", tmp_path, "--methods", "lora", "--parts", "checkpointing", file="fsdp")
    assert [row for row in again["rows"] if row["method"] == "dual_lora"] == found["rows"], "rows not timed are kept"
    assert {row["checkpointing"] for row in again["rows"] if row["method"] == "lora"} == {True}
    large = smoke("fsdp", tmp_path, "--parts", "large", file="fsdp")
    assert large["rows"] == again["rows"]
    for row in large["large"]["rows"]:
        assert_timed(row)
        assert row["losses"][-1] < row["losses"][0], "weights drawn in shards are trained"


def test_fsdp_summary_names_the_first_loss_that_differs():
    row = {"method": "lora", "checkpointing": False, "median_ms": 2.0}
    rows = [{**row, "kind": "one GPU", "losses": [9.0]}, {**row, "kind": "in turn", "losses": [3.0, 2.0, 1.0]}]
    rows += [{**row, "kind": "fsdp", "losses": [3.0, 2.5, 1.0]}, {**row, "kind": "DDP", "losses": [3.0, 2.0, 1.0]}]
    found = {row["kind"]: row for row in fsdp.summary(rows)["rows"]}
    assert [found[kind]["first_other_loss"] for kind in ("fsdp", "DDP")] == [1, None]
    assert "efficiency" not in found["one GPU"]


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_is_measured(name, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", name, "--help"])
    assert end.value.code == 0
    assert f"python run.py bench {name}" in capsys.readouterr().out.split("options:")[0].split("\n\n", 1)[1]


@pytest.mark.parametrize("benchmark", [training, fsdp, scaling])
def test_each_part_of_a_benchmark_can_be_asked_for(benchmark):
    asked = parser_of(benchmark.__name__.rpartition(".")[2]).parse(["--parts", *benchmark.PARTS])
    assert asked.parts == list(benchmark.PARTS)


def test_pages_show_what_the_benchmark_files_hold():
    assert main(["bench", "report", "--check"]) == 0


SCALING = [
    "2, fsdp",
    "; 2 runs, ",
    "for comparison, same identity",
    "held, same identity",
    "was ended by SIGKILL",
    "layers of LLaMA-3-70B",
]


def assert_scaling(folder: Path) -> None:
    every = json.loads((folder / "scaling.json").read_text())
    found = every["2"]
    same, killed, speed = found["same"]["dual_lora, float32"]["fsdp"], found["killed"], found["speed"]["dual_lora"]
    assert same["within_bound"]
    assert same["same_identity"]
    assert killed["status"] == "interrupted"
    assert killed["left"] == 0
    assert killed["curve"]["largest"] == killed["undisturbed"]["largest"] == 0.0
    assert speed["fsdp"]["world_size"] == len(speed["fsdp"]["peak_GiB"]) == 2
    rate = speed["fsdp"]["tokens_per_second"] / speed["one"]["tokens_per_second"]
    assert speed["fsdp"]["efficiency"] == pytest.approx(rate / 2)
    assert found["large"]["adapter"]["elements"] == found["large"]["adapter"]["trained"] > 0
    assert len(speed["one"]["medians"]) == 2, "on each card"
    assert len((folder / "scaling.jsonl").read_text().splitlines()) == 11
    text = scaling_tables.section(every)
    assert [part for part in SCALING if part not in text] == []


@pytest.mark.slow
def test_scaling_benchmark_makes_compares_and_kills_runs(tmp_path):
    """Two processes of tiny models on the CPU stand for two GPUs; the records and the pages' tables come with them."""
    words = ("--smoke", "--output", str(tmp_path / "made"), "--scratch", str(tmp_path / "scratch"))
    ran = bench("scaling", *words, timeout=1800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert_scaling(tmp_path / "made")


def test_scaling_benchmark_refuses_a_pattern_of_no_group(tmp_path, capsys):
    assert main(["bench", "scaling", "--smoke", "--only", "lora-zero4", "--output", str(tmp_path)]) == 2
    assert "lora-zero4: matches none of lora-fsdp, " in capsys.readouterr().err


def test_scaling_benchmark_gives_commands_that_compose_and_tells_their_runs(tmp_path, monkeypatch):
    """Its runs take minutes. Here each copies one that is made first; that their commands would run is checked."""
    assert launch([config(tmp_path / "one", "profile.max_steps=12", "recipe.epochs=1000")]) == 0
    command = [sys.executable, str(ROOT / "tests" / "end_to_end" / "stand_in.py"), str(tmp_path / "one")]
    monkeypatch.setattr(shipped, "command", lambda: command)
    made = smoke("scaling", tmp_path / "made", "--scratch", str(tmp_path / "scratch"), file="scaling")
    assert_scaling(tmp_path / "made")
    some = ("--parts", "speed", "same", "--only", "dual_lora-*", "--scratch", str(tmp_path / "scratch"))
    again = smoke("scaling", tmp_path / "made", *some, file="scaling")
    for part in ("speed", "same", "killed", "large"):
        apart = {"command": None, "seconds": None}
        assert {**again["2"][part], **apart} == {**made["2"][part], **apart}, "what is not run again is kept"
    given = [line.split() for line in (tmp_path / "one" / "commands.txt").read_text().splitlines()]
    assert len(given) == 11, "a row each; the run that is killed has two, and its command is given twice"
    for words in given:
        [cell] = compose(words)
        check(cell)
    assert {word for words in given for word in words if word.startswith("launch=")} == {"launch=fsdp"}
