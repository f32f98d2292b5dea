"""Cells side by side: forked workers make the records of processes of their own, and a crash takes no other with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dual_lora.config.compose import compose
from dual_lora.launch import forks, launch, local
from dual_lora.launch.local import _record_crash, write_config
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve
from tests import ROOT
from tests.faults.test_environment import LEFT_OVER
from tests.small_cells import CLASSIFYING, arguments, config, numbers, start

E2E = ["model=tiny_llama", "task=e2e", "profile.test_items=2", "protocol.decoding.beams=1"]


def records(results: Path) -> dict[str, dict[str, Any]]:
    found = (json.loads(path.read_text()) for path in (results / "records").glob("*.json"))
    return {record["identity"]["run_id"]: record for record in found}


def side_by_side(results: Path, *more: str) -> int:
    words = arguments(results, "launch.parallel=2", *more, kind=CLASSIFYING)
    return launch(compose(["-m", *words]))


def test_forked_cells_make_the_records_of_processes_of_their_own_whose_shell_has_settings_of_other_tools(
    tmp_path: Path,
) -> None:
    """accelerate reads such settings once in a process, so it is a new one. For other ranks it would wait for ever."""
    words = arguments(tmp_path / "alone", "method=dual_lora", "seed=1", kind=CLASSIFYING)
    alone = start(*words, **LEFT_OVER)
    assert side_by_side(tmp_path / "forked", "method=dual_lora", "seed=0,1") == 0
    forked = records(tmp_path / "forked")
    assert len(forked) == 2
    said, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, said
    assert f"left out, as settings of other tools: {', '.join(sorted(LEFT_OVER))}" in said
    [(run_id, record)] = records(tmp_path / "alone").items()
    assert numbers(forked[run_id]) == numbers(record)


def test_other_methods_of_a_writing_model_run_side_by_side(tmp_path: Path) -> None:
    more = ["method=none,lora", "task.metrics=[BLEU]", "launch.parallel=2"]
    assert launch(compose(["-m", *arguments(tmp_path, *more, kind=E2E)])) == 0
    found = records(tmp_path).values()
    assert sorted(record["identity"]["method"]["name"] for record in found) == ["lora", "none"]
    assert {record["status"] for record in found} == {"finished"}
    assert {record["execution"]["parallel"] for record in found} == {2}
    assert len(list((tmp_path / "runs").glob("*/log.txt"))) == 2


def test_a_cell_writes_to_its_own_log_and_follows_the_commands_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUAL_LORA_COMMAND", "python run.py of this test")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert side_by_side(tmp_path, "method=lora", "seed=0,1") == 0
    for run_id, record in records(tmp_path).items():
        assert "finished" in (tmp_path / "runs" / run_id / "log.txt").read_text()
        assert record["origin"]["command"] == "python run.py of this test"
        assert record["execution"]["threads"] == max(1, (os.cpu_count() or 1) // 2), "two cells share the cores"
    assert "training:" not in capfd.readouterr().err


def hungry(folder: Path, times: int) -> str:
    """Write a method whose cell finds no memory `times` times; return the sweep over it and LoRA."""
    (folder / "hungry.py").write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nimport peft\nimport torch\n\n"
        f"TRIES = Path({str(folder / 'tries')!r})\n\n"
        "@dataclass\nclass HungryConfig(peft.LoraConfig):\n    @property\n"
        "    def is_prompt_learning(self):  # read as a model gets its adapter, not as settings are checked\n"
        "        tried = len(TRIES.read_text()) if TRIES.exists() else 0\n"
        f"        if tried < {times}:\n            TRIES.write_text('x' * (tried + 1))\n"
        "            raise torch.cuda.OutOfMemoryError('CUDA out of memory.')\n        return False\n"
    )
    return "method.config_class=hungry.HungryConfig,peft.LoraConfig"


@pytest.mark.parametrize(("times", "status"), [(1, "finished"), (9, "out_of_memory")])
def test_out_of_memory_beside_others_is_tried_again_with_fewer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: int, status: str
) -> None:
    """The other cell runs meanwhile. The second try is alone, which settles it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    assert side_by_side(tmp_path, "method=lora", hungry(tmp_path, times)) == (0 if status == "finished" else 1)
    assert sorted(record["status"] for record in records(tmp_path).values()) == sorted([status, "finished"])
    assert "from now on 1 at a time" in caplog.text
    assert len((tmp_path / "tries").read_text()) == min(times, 2)


def test_out_of_memory_on_a_card_of_its_own_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_cards", lambda place, wanted: [str(place)])
    monkeypatch.syspath_prepend(str(tmp_path))
    assert side_by_side(tmp_path, "method=lora", hungry(tmp_path, 1)) == 1
    assert sorted(record["status"] for record in records(tmp_path).values()) == ["finished", "out_of_memory"]
    assert len((tmp_path / "tries").read_text()) == 1


def test_a_cell_that_crashes_is_recorded_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crashing.py").write_text(
        "import os, signal\nfrom dataclasses import dataclass\nimport peft\n\n"
        "@dataclass\nclass CrashConfig(peft.LoraConfig):\n    @property\n"
        "    def is_prompt_learning(self):\n        os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    classes = "method.config_class=crashing.CrashConfig,peft.LoraConfig"
    assert side_by_side(tmp_path, "method=lora", classes, "seed=0,1") == 1
    ends = {(record["identity"]["seed"], record["status"]) for record in records(tmp_path).values()}
    assert ends == {(seed, status) for seed in (0, 1) for status in ("finished", "failed")}
    failed = [record for record in records(tmp_path).values() if record["status"] == "failed"]
    assert all("crashed with SIGSEGV" in record["message"] for record in failed)


@pytest.mark.slow
def test_a_fork_that_cannot_use_its_gpu_becomes_a_process_of_its_own(tmp_path: Path) -> None:
    """Where a package that the server loads has touched the driver, torch refuses CUDA in every fork."""
    item = resolve(config(tmp_path, "method=lora", kind=CLASSIFYING))
    code = (
        "import os, sys, torch; torch.cuda._is_in_bad_fork = lambda: True;"
        "from dual_lora.launch.forks import _work; _work(sys.argv[1], sys.argv[2], dict(os.environ), None)"
    )
    log = tmp_path / "log.txt"
    words = [sys.executable, "-c", code, str(write_config(item)), str(log)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    (record,) = records(tmp_path).values()
    assert record["status"] == "finished", log.read_text()


@pytest.mark.parametrize(("written", "recorded"), [("before", True), ("after", False), ("never", True)])
def test_a_crash_while_leaving_does_not_replace_what_the_cell_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, recorded: bool
) -> None:
    class Died(forks.Fork):
        returncode = -11

        def __init__(self) -> None:
            self.began = 1000.0

    item = SimpleNamespace(record_path=tmp_path / "record.json")
    if written != "never":
        item.record_path.write_text("{}")
        os.utime(item.record_path, (900, 900) if written == "before" else (1100, 1100))
    calls: list[Any] = []
    monkeypatch.setattr(lifecycle, "write_failure", lambda *arguments: calls.append(arguments))
    _record_crash(item, Died())
    assert bool(calls) is recorded
