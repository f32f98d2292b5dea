"""What a finished run leaves on disk: what others read of it, and no optimizer state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dual_lora import records
from dual_lora.commands import main
from dual_lora.config.compose import compose
from dual_lora.records.lock import RunLock
from dual_lora.runs import leftovers, lifecycle
from dual_lora.runs.resolve import resolve

SMALL = ["model=tiny_roberta", "task=glue/rte", "method=lora", "data.source=sample", "launch.device=cpu"]
SMALL += ["profile=quick", "profile.max_steps=2", "profile.test_items=2", "profile.train_examples=16"]


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    [config] = compose([*SMALL, f"results={tmp_path}", "launch.save_every_steps=1"])
    resolved = resolve(config)
    made = lifecycle.run(resolved)
    assert made["status"] == "finished", made.get("message")
    return resolved.folder, made


def test_a_finished_run_keeps_its_reported_weights_and_no_optimizer(finished) -> None:
    folder, made = finished
    kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in kept if "optimizer" in name or name.startswith("checkpoints")]
    assert {"last.safetensors", "adapter/adapter_model.safetensors", "selected/best_dev.safetensors"} <= kept
    assert "selected/best_loss.safetensors" not in kept, "no measurement of the record is of it"
    assert records.weights_file(folder, made["scores"]["headline"]["checkpoint"]).is_file()
    assert load_file(folder / "last.safetensors")
    again = lifecycle.run(resolve(compose([*SMALL, f"results={folder.parents[1]}"])[0]))
    assert again == made


def put_back(folder: Path) -> None:
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "optimizer.pt").write_bytes(b"x" * 2**20)


def test_clean_says_what_it_would_remove_and_removes_it_when_told(finished, capsys) -> None:
    folder, made = finished
    results = str(folder.parents[1])
    put_back(folder)
    assert main(["clean", f"results={results}"]) == 0
    assert f"{folder.name}: 1.0 MiB: checkpoints" in capsys.readouterr().out
    assert (folder / "checkpoints").is_dir()
    assert main(["clean", f"results={results}", "--remove"]) == 0
    assert "1.0 MiB freed in 1 runs" in capsys.readouterr().out
    assert main(["clean", f"results={results}"]) == 0
    assert capsys.readouterr().out == "nothing to free in 1 runs\n"
    assert not (folder / "checkpoints").exists()
    assert (folder / "last.safetensors").is_file()
    assert main(["clean", f"results={results}", "--remove", "--weights"]) == 0
    assert not list(folder.rglob("*.safetensors"))
    assert list((folder / "predictions").iterdir())
    assert records.read(records.record_path(results, folder.name)) == made


def test_clean_leaves_what_is_not_finished_or_in_use(finished, capsys) -> None:
    folder, made = finished
    results = folder.parents[1]
    put_back(folder)
    with RunLock(folder):
        assert main(["clean", f"results={results}", "--remove"]) == 0
    assert "left alone" in capsys.readouterr().err
    assert (folder / "checkpoints").is_dir()
    records.write(records.record_path(results, folder.name), {**made, "status": "interrupted"})
    assert leftovers.not_needed(folder, {**made, "status": "interrupted"}, weights=True) == []
    assert main(["clean", f"results={results}", "--remove", "--weights"]) == 0
    records.record_path(results, folder.name).write_text(json.dumps({}))
    assert main(["clean", f"results={results}", "--remove", "--weights"]) == 0
    assert "refused" in capsys.readouterr().err
    assert (folder / "checkpoints").is_dir()
    assert (folder / "last.safetensors").is_file()


def test_a_folder_without_runs_is_named(tmp_path: Path, capsys) -> None:
    assert main(["clean", f"results={tmp_path}"]) == 2
    assert "no runs in" in capsys.readouterr().err
