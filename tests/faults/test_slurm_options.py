"""What goes into a job script cannot leave its line, start a command, or write elsewhere. Needs no SLURM."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from pathlib import Path

import pytest

from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.launch import group, launch, prepare, slurm
from dual_lora.launch.local import write_config
from dual_lora.launch.slurm import SlurmCell, script
from dual_lora.launch.slurm_options import check_options
from tests.small_cells import WRITING, config, only_record


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """A frozen cell that each test changes a copy of."""
    return config(tmp_path_factory.mktemp("slurm") / "results", "launch=slurm", "launch.device=auto")


def with_launch(cell, **values):
    return dataclasses.replace(cell, launch=dataclasses.replace(cell.launch, **values))


@pytest.mark.parametrize("name", ["partition", "account", "qos", "constraint"])
@pytest.mark.parametrize("value", ["gpu\n#SBATCH --wrap=id", "gpu; id", "$(id)", "`id`", "gpu --uid=0", "a'b", ""])
def test_words_that_leave_their_place_are_refused(name, value, cell):
    with pytest.raises(ConfigError, match=f"launch.{name}="):
        check_options(with_launch(cell, **{name: value}))


@pytest.mark.parametrize("key", ["wrap", "output", "chdir", "array", "Exclude", "-x", "x y", "x\n#SBATCH -x", "x=1"])
def test_options_that_are_not_the_users_are_refused(key, cell):
    with pytest.raises(ConfigError, match="launch.sbatch"):
        check_options(with_launch(cell, sbatch={key: "1"}))


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", ["a"], None, False])
def test_option_values_stay_on_one_line(value, cell):
    with pytest.raises(ConfigError, match="on one line"):
        check_options(with_launch(cell, sbatch={"comment": value}))


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["launch.sbatch={exclude: node7, mail-type: END}"], {"exclude": "node7", "mail-type": "END"}),
        (
            ["launch.sbatch.exclude=node[1-3]", "launch.sbatch.exclusive=true"],
            {"exclude": "node[1-3]", "exclusive": True},
        ),
    ],
)
def test_options_are_given_on_the_command_line(words, given):
    """No YAML has their keys, and Hydra refused every one: "unknown setting launch.sbatch.exclude. Legal: "."""
    for command in ([*WRITING, "launch=slurm", *words], ["-m", *WRITING, "launch=slurm", "seed=0,1", *words]):
        assert {repr(cell.launch.sbatch) for cell in compose(command)} == {repr(given)}


def test_set_up_lines_and_containers_stay_on_one_line(cell):
    for values in ({"setup": ("module load cuda\n#SBATCH -x",)}, {"container": "run\nid"}, {"container": "run 'x"}):
        with pytest.raises(ConfigError):
            check_options(with_launch(cell, **values))


@pytest.mark.parametrize("results", ["res%j", "a\nb"])
def test_folders_that_slurm_would_read_otherwise_are_refused(results, cell):
    with pytest.raises(ConfigError, match="results="):
        check_options(dataclasses.replace(cell, results=results))


@pytest.mark.parametrize("minutes", [5, 6])
def test_signal_has_to_come_before_the_limit(minutes, cell):
    """SLURM sends it up to a minute early: a job of six minutes was told to end as it began, again and again."""
    with pytest.raises(ConfigError, match="before the limit"):
        check_options(with_launch(cell, time_limit_minutes=minutes, signal_seconds=300))
    check_options(with_launch(cell, time_limit_minutes=minutes + 2, signal_seconds=300))


def test_odd_but_legal_values_are_quoted(cell, tmp_path):
    odd = dataclasses.replace(
        with_launch(cell, sbatch={"comment": "it's $HOME; `id`"}, container="apptainer exec 'my image.sif' ;"),
        results=str(tmp_path / "with space; and $(id)"),
    )
    check_options(odd)
    lines = script(odd, 2).splitlines()
    [comment] = [line for line in lines if "--comment" in line]
    assert comment == "#SBATCH --comment=" + shlex.quote("it's $HOME; `id`")
    [command] = [line for line in lines if line.startswith("srun ")]
    words = shlex.split(command)
    assert words[words.index("apptainer") : words.index("apptainer") + 4] == ["apptainer", "exec", "my image.sif", ";"]
    assert str(tmp_path / "with space; and $(id)" / "slurm") in words
    assert all(not line or line.startswith(("#", "export ", "srun ")) for line in lines)


def test_script_asks_for_what_was_configured(cell):
    asked = with_launch(
        cell,
        nodes=2,
        gpus_per_node=8,
        parallel=4,
        partition="gpu",
        account="lab",
        constraint="a100|h100",
        device="cuda",
    )
    text = script(asked, 9)
    wanted = (
        "array=0-8%4",
        "nodes=2",
        "gpus-per-node=8",
        "partition=gpu",
        "account=lab",
        "ntasks-per-node=1",
        "requeue",
    )
    for option in wanted:
        assert f"#SBATCH --{option}\n" in text
    assert "#SBATCH --constraint='a100|h100'\n" in text
    assert "#SBATCH --signal=USR2@300\n" in text
    assert "#SBATCH --time=1440\n" in text
    assert "#SBATCH --requeue\n" in text
    assert "--kill-on-bad-exit=1" in text


def test_cells_without_gpus_ask_for_none(cell):
    assert "--gpus" not in script(with_launch(cell, device="cpu"), 1)


def test_what_slurm_refuses_is_said_in_a_sentence(tmp_path, monkeypatch):
    """A misspelt partition ended in submitit's traceback of sixty lines."""
    said = "sbatch: error: invalid partition specified: gpu\nsbatch: error: Batch job submission failed"
    for name, does in (("srun", ""), ("squeue", ""), ("sbatch", f"echo '{said}' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    words = ("launch=slurm", "launch.partition=gpu", "launch.memory_gb=64")
    with pytest.raises(ConfigError) as refused:
        launch([config(tmp_path / "results", *words)])
    message = str(refused.value)
    assert message.startswith(
        "SLURM refused a job that asks for partition=gpu nodes=1 cpus_per_task=8 mem=64GB time=1440"
    )
    assert ": invalid partition specified: gpu Batch job submission failed (`sinfo` " in message


def test_a_job_whose_time_is_too_short_is_not_queued_for_ever(tmp_path, monkeypatch):
    """It was queued a thousand times, and each start trained what the one before it had lost."""
    cell = config(tmp_path, "launch=slurm", "launch.time_limit_minutes=10", "launch.save_every_steps=1")
    [item] = prepare([cell])
    seconds, saves = [0.0], [True]

    def trains(self, handle_signals):
        seconds[0] += 60.0 if self.file.name == "preempted" else 240.0
        if saves[0]:
            folder = item.folder / "checkpoints" / f"checkpoint-{seconds[0]:.0f}"
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")

    monkeypatch.setattr(slurm.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(group.Group, "run", trains)
    monkeypatch.setattr(group, "settle", lambda *_: "finished")
    start = SlurmCell(str(write_config(item)))

    def next_start(start):
        start()
        queued = start.checkpoint()
        return queued and queued.function

    start = next_start(start)
    assert start.fruitless == 0
    saves[0] = False
    start = next_start(start)
    assert start.fruitless == 1
    saves[0] = True
    assert next_start(start).fruitless == 0, "it went on"
    saves[0] = False
    assert next_start(start) is None
    record = only_record(tmp_path)
    assert record["status"] == "timed_out", "the same command continues it"
    assert "2 jobs in a row reached launch.time_limit_minutes=10 with nothing to continue from" in record["message"]
    start.file = str(Path(start.file).with_name("preempted"))
    Path(start.file).write_text(json.dumps(cell.to_dict()))
    assert next_start(start).fruitless == 1, "a job that is preempted is queued again as often as that happens"
