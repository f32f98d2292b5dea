"""Benchmarks of training steps run small on a CPU and write what the committed files hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.small_cells import ROOT

# In a process of its own: on this one's path, scripts/evaluate.py would stand before the library of that name.
SECTION = "import json, sys, scaling_tables; print(scaling_tables.section(json.load(open(sys.argv[1]))))"


def bench(
    *words: str, script: str = "bench_zero.py", timeout: int = 600, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(ROOT / "scripts" / script), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.mark.slow
def test_zero_benchmark_times_both_launchers(tmp_path):
    ran = bench("--smoke", "--methods", "lora", "--output", str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    written = json.loads((tmp_path / "zero.json").read_text())
    assert {"card", "torch", "deepspeed", "peft"} <= written["environment"].keys()
    size, found = written["zero"]["size"], written["zero"]["lora"]
    for launcher in ("plain", "zero2"):
        timed = found[launcher]
        assert timed["steps"] == size["steps"] * size["rounds"]
        assert 0 < timed["p20_ms"] <= timed["median_ms"] <= timed["p80_ms"]
    assert found["ratio"] == found["zero2"]["median_ms"] / found["plain"]["median_ms"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the real model is timed")
@pytest.mark.slow
def test_zero_benchmark_needs_a_gpu_for_the_real_model(tmp_path):
    ran = bench("--output", str(tmp_path))
    assert ran.returncode == 1
    assert "--smoke" in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_loss_positions_benchmark_times_both_ways(tmp_path):
    ran = bench("--smoke", "--output", str(tmp_path), script="bench_loss_positions.py")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    tiny = json.loads((tmp_path / "loss_positions.json").read_text())["tiny"]
    for way in ("everywhere", "where_the_loss_is"):
        assert 0 < tiny[way]["p20_ms"] <= tiny[way]["median_ms"] <= tiny[way]["p80_ms"]


@pytest.mark.slow
def test_walks_benchmark_times_both_ways(tmp_path):
    ran = bench("--smoke", "--output", str(tmp_path), script="bench_walks.py")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "walks_cpu.json").read_text())
    for method in ("lora", "dual_lora"):
        for way in ("trainer", "ours"):
            assert 0 < found[method][way]["p20_ms"] <= found[method][way]["median_ms"] <= found[method][way]["p80_ms"]


@pytest.mark.slow
def test_group_steps_benchmark_times_both_ways(tmp_path):
    ran = bench("--smoke", "--methods", "dual_lora", "--output", str(tmp_path), script="bench_group_steps.py")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "group_steps_cpu.json").read_text())
    for stage in (2, 3):
        row = found[f"dual_lora, zero{stage}"]
        for way in ("deepspeed", "ours"):
            assert 0 < row[way]["p20_ms"] <= row[way]["median_ms"] <= row[way]["p80_ms"]
            assert row[way]["steps"] == found["size"]["steps"]
        assert row["ratio"] == row["ours"]["median_ms"] / row["deepspeed"]["median_ms"]


def test_kernel_benchmarks_run_in_the_interpreter(tmp_path):
    """Tiny layers: the times say nothing, but each kernel is called as it is on a GPU, and no failure is a result."""
    for script in ("bench_kernels.py", "sweep_kernels.py"):
        ran = bench("--output", str(tmp_path), script=script, TRITON_INTERPRET="1")
        assert ran.returncode == 0, ran.stdout + ran.stderr
    measured = json.loads((tmp_path / "kernels.json").read_text())
    assert {"copy", "build", "reduce", "reduce_and_rebuild"} <= measured["parts"][0].keys()
    assert [row["tokens"] for row in measured["few_tokens"]] == [1, 16, 32, 64]
    assert all(row["one_kernel"]["median_ms"] > 0 for row in measured["few_tokens"])
    assert {"dual_lora", "lora", "floor"} <= measured["growth"]["rows"][0].keys()
    tiles = json.loads((tmp_path / "kernels_tiles.json").read_text())["tiles"]
    assert tiles.keys() == {"build", "reduce", "reduce_and_rebuild", "few_tokens"}
    assert all(row["median_ms"] > 0 for rows in tiles.values() for row in rows)


def test_pages_show_what_the_benchmark_files_hold():
    ran = bench("--check", script="bench_report.py")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_scaling_benchmark_makes_compares_and_kills_runs(tmp_path):
    """Two processes of tiny models on the CPU stand for two GPUs; the records and the pages' tables come with them."""
    words = ("--smoke", "--output", str(tmp_path / "made"), "--scratch", str(tmp_path / "scratch"))
    ran = bench(*words, script="bench_scaling.py", timeout=1800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "made" / "scaling.json").read_text())["2"]
    same, killed, speed = found["same"]["dual_lora, float32"]["zero2"], found["killed"], found["speed"]["dual_lora"]
    assert same["within_bound"]
    assert same["same_identity"]
    assert killed["status"] == "interrupted"
    assert killed["left"] == 0
    assert killed["curve"]["largest"] == killed["undisturbed"]["largest"] == 0.0
    assert speed["zero2"]["world_size"] == len(speed["zero2"]["peak_GiB"]) == 2
    rate = speed["zero2"]["tokens_per_second"] / speed["one"]["tokens_per_second"]
    assert speed["zero2"]["efficiency"] == pytest.approx(rate / 2)
    assert found["large"]["adapter"]["elements"] == found["large"]["adapter"]["trained"] > 0
    assert len(speed["one"]["medians"]) == 4, "on each card before and after the groups"
    assert len((tmp_path / "made" / "scaling.jsonl").read_text().splitlines()) == 13
    text = subprocess.run(
        [sys.executable, "-c", SECTION, str(tmp_path / "made" / "scaling.json")],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for part in (
        "ZeRO-2",
        "; 4 runs, ",
        "for comparison, same identity",
        "held, same identity",
        "was ended by SIGKILL",
        "layers of LLaMA-3-70B",
    ):
        assert part in text
