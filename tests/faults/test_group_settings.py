"""What a group is started with: settings that contradict each other are refused, and each process has a card."""

from __future__ import annotations

import subprocess

import pytest

from dual_lora.config import ConfigError
from dual_lora.launch import OLDEST_DEEPSPEED, check, launch, local, prepare
from tests import ROOT
from tests.small_cells import config


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("launch.num_gpus=2",), "launch.engine=torchrun"),
        (("launch.nodes=2", "launch.engine=torchrun"), "launch=slurm"),
        (("launch.zero_stage=2",), "launch.engine=deepspeed"),
        (("launch=deepspeed", "launch.zero_stage=0", "launch.offload=true"), "launch.zero_stage=1, 2 or 3"),
        (("launch=deepspeed", "method=adalora", "launch.zero_stage=0"), "launch=torchrun"),
        (("launch=deepspeed", "method=galore", "launch.zero_stage=1"), "zero_stage=1 .*launch=torchrun"),
        (("launch=deepspeed", "method=galore", "launch.zero_stage=3", "method.name=mine"), "galore_adamw"),
        (("launch.keep_checkpoints=0",), "at least 1"),
        (("launch.num_gpus=0",), "at least 1"),
    ],
)
def test_contradicting_launch_settings_are_refused_with_the_fix(words, fix, tmp_path):
    with pytest.raises(ConfigError, match=fix):
        check(config(tmp_path, *words))


def test_a_deepspeed_that_computes_other_numbers_is_refused(tmp_path, monkeypatch):
    """The oldest one is that of pyproject.toml, with which `make test-deepspeed` tests."""
    cell = config(tmp_path, "launch=deepspeed", "launch.num_gpus=2")
    check(cell)
    monkeypatch.setattr("dual_lora.launch.version", lambda name: {"deepspeed": "0.19.7"}[name])
    with pytest.raises(ConfigError, match=r"0\.19\.7 is installed.*pip install 'deepspeed>=0\.19\.8,<0\.20'"):
        check(cell)
    check(config(tmp_path, "launch=fsdp", "launch.num_gpus=2"))
    assert f'"deepspeed>={OLDEST_DEEPSPEED},<0.20; ' in (ROOT / "pyproject.toml").read_text()


def test_number_of_processes_has_to_divide_the_global_batch(tmp_path):
    with pytest.raises(ConfigError, match="1, 2, 4, 8"):
        launch([config(tmp_path, "launch=torchrun", "launch.num_gpus=3", "launch.per_device_batch=null")])


@pytest.mark.parametrize(
    ("visible", "wanted", "expected"),
    [("0,1,2,3", 1, ["0", "1", "2", "3"]), ("4,5,6,7", 2, ["4,5", "6,7", "4,5"]), ("0", 1, ["0", "0"])],
)
def test_cells_side_by_side_get_cards_of_their_own(visible, wanted, expected, monkeypatch):
    from dual_lora.launch.local import _cards

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [",".join(_cards(place, wanted)) for place in range(len(expected))] == expected


def test_a_group_side_by_side_gets_a_card_for_each_process_by_either_name(tmp_path, monkeypatch):
    """By launch.gpus_per_node two processes got one card."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    seen: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: seen.append(env["CUDA_VISIBLE_DEVICES"]))
    for name in ("num_gpus", "gpus_per_node"):
        words = ("launch=fsdp", f"launch.{name}=2", "launch.parallel=2", "launch.per_device_batch=4")
        [item] = prepare([config(tmp_path, *words)])
        local._start(item, 1)
    assert seen == ["2,3", "2,3"]
    with pytest.raises(ConfigError, match=r"num_gpus=4, launch.gpus_per_node=2: two names of one number; give one"):
        check(config(tmp_path, "launch=fsdp", "launch.num_gpus=4", "launch.gpus_per_node=2"))
    assert config(tmp_path, "launch=slurm", "launch.num_gpus=4").launch.processes_per_node == 4, "slurm.yaml said 1"
