"""The shell a run is started in: settings of other tools, locales, no home folder, memory that others took."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dual_lora import models
from dual_lora.commands import main
from dual_lora.config import ModelError
from dual_lora.config.environment import cache_folder, leave_out_other_tools
from dual_lora.metrics import java
from dual_lora.models.checkpoint_files import remembered_sha256
from tests.small_cells import config

# What accelerate launch, accelerate config, a Kubernetes job, torchrun, mpirun and srun leave in a shell; a run that is
# started there is in tests/end_to_end/test_forks.py.
LEFT_OVER = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "EAGER",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29544",
    "TORCHELASTIC_RUN_ID": "theirs",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "PMI_SIZE": "2",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "NVIDIA_TF32_OVERRIDE": "1",
    "TRANSFORMERS_SDPA_FORCE_GQA": "1",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
}


def test_a_process_of_a_group_keeps_what_its_parent_told_it():
    given = {**LEFT_OVER, "RANKING": "ours", "MY_ACCELERATE_X": "theirs", "PATH": "/bin"}
    kept = leave_out_other_tools(inside := dict(given), in_group=True)
    torchrun = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"}
    assert inside.keys() == {"RANKING", "MY_ACCELERATE_X", "PATH", *torchrun}
    assert set(kept) == LEFT_OVER.keys() - torchrun
    leave_out_other_tools(alone := dict(given), in_group=False)
    assert alone.keys() == {"RANKING", "MY_ACCELERATE_X", "PATH"}


@pytest.mark.parametrize(
    ("around", "launcher"),
    [
        ("python /venv/bin/torchrun --nproc_per_node=2 run.py", "torchrun"),
        ("python -m torch.distributed.run --nproc_per_node=2 run.py", "torchrun"),
        ("python -u -m deepspeed.launcher.launch --world_info=x", "deepspeed"),
        ("bash /home/ana/deepspeed_runs/start.sh", None),
    ],
)
def test_one_of_several_that_torchrun_started_says_how_to_start_several(around, launcher, monkeypatch, capsys):
    """Each was a command of its own and found the run taken by another. What is left over in a shell is let be."""
    for name, value in LEFT_OVER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(psutil.Process, "parent", lambda self: SimpleNamespace(cmdline=around.split))
    main(["no.such=1"])
    said = capsys.readouterr().err
    assert ("started this as process" in said) == bool(launcher)
    if launcher:
        assert f"error: {launcher} started this as process 1 of 2; the suite starts its processes itself: give" in said
        assert "launch=torchrun (or fsdp, deepspeed) launch.num_gpus=2" in said


@pytest.mark.skipif(not java.available(), reason="no Java")
def test_java_writes_as_everywhere_under_any_locale(monkeypatch):
    """LC_CTYPE alone is enough, which ssh passes on: Turkish lower-cases I otherwise. METEOR: tests/unit/metrics."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=tr -Duser.country=TR -Dfile.encoding=US-ASCII")
    assert java.ptb_tokenize(["The MILL IS in Istanbul", "Café"]) == ["the mill is in istanbul", "café"]


@pytest.fixture
def without_home(monkeypatch):
    """A container's user without an entry in /etc/passwd."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("DUAL_LORA_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


def test_without_a_home_folder_the_cache_has_to_be_named(without_home, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no home folder for the cache .*set DUAL_LORA_CACHE"):
        cache_folder()
    (tmp_path / "weights").write_bytes(b"x")
    assert len(remembered_sha256(tmp_path / "weights")) == 64
    model = dataclasses.replace(config(tmp_path).model, path="~/model")
    with pytest.raises(ModelError, match=r"model\.path=~/model does not exist"):
        models.check_available(model)
    monkeypatch.setenv("DUAL_LORA_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == Path(tmp_path / "cache")


def test_the_peak_memory_of_a_run_is_its_own(tmp_path, monkeypatch):
    """On a CPU a process's own measure is the largest it has ever been, whichever run needed it."""
    import torch

    from dual_lora.launch import prepare
    from dual_lora.runs import lifecycle, machine

    def peaks(name: str) -> list[int]:
        [prepared] = prepare([config(tmp_path / name, "method=none", "profile.test_items=1")])
        return lifecycle.run(prepared)["cost"]["peak_memory_bytes"]

    if machine.forget_peak_memory("cpu"):
        before = machine.peak_memory("cpu")
        torch.ones(100 * 2**20)  # 400 MiB, of an earlier run
        assert machine.peak_memory("cpu") > before + 350 * 2**20
        [peak] = peaks("one")
        assert 50 * 2**20 < peak < before + 250 * 2**20
    monkeypatch.setattr(machine, "forget_peak_memory", lambda kind: False)  # a system that does not let a process do so
    assert peaks("two") == []
