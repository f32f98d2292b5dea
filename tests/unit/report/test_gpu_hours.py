"""GPU-hours of what a table lacks: sums by hand, what they rest on, and when their file is out of date."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from dual_lora import shipped
from dual_lora.benchmarks import gpu_hours as benchmark
from dual_lora.benchmarks.gpu_hours import seconds_of
from dual_lora.commands import main
from dual_lora.records.schema import parse
from dual_lora.report import definition, formats, gpu_hours
from dual_lora.report.gpu_hours import GpuHours
from dual_lora.report.layout import Waiting
from dual_lora.report.workspace import Workspace
from dual_lora.runs import hours
from dual_lora.runs.cards import CARDS
from tests.unit.page.page_builder import document, of_method, values, workspace
from tests.unit.report.report_builder import EXPERIMENT, ours, record, seeds_of

SECONDS = {"method=none": 60.0, "method=lora": 720.0, "method=dual_lora": "too large for one card"}


def written(folder: Path, **changed: object) -> Workspace:
    """Return a workspace whose file says `SECONDS`, with three seeds of LoRA done."""
    space = workspace(folder, *seeds_of("lora", [0.6, 0.61, 0.62]))
    (folder / "configs").mkdir()
    (folder / "configs" / "a.yaml").write_text("# why\nrank: 8\n")
    content = {
        "card": "a card",
        "errors": {"smollm2": [0.2, 0.5]},
        "made_of": gpu_hours.digests(space.experiments(), folder / "configs"),
        "seconds": {"table_x": SECONDS},
        **changed,
    }
    (folder / "results" / "benchmarks").mkdir()
    (folder / "results" / "benchmarks" / gpu_hours.FILE).write_text(json.dumps(content))
    return space


def test_a_cell_has_the_hours_of_its_runs_and_a_block_those_of_all(tmp_path):
    space = written(tmp_path)
    table = space.views(space.all_records())["table_x"]
    # One untrained run serves all seeds; a row that is begun has its number, and three seeds to go.
    assert ours(table, "none").cells[0].waiting == Waiting(1, 60 / 3600)
    assert ours(table, "LORA").cells[0].waiting is None
    assert ours(table, "dual_lora").cells[0].waiting == Waiting(6, 0, 6, "too large for one card")
    assert table.blocks[0].waiting == Waiting(10, pytest.approx((60 + 3 * 720) / 3600), 6, "too large for one card")
    text = formats.markdown(table)
    assert "| none | here | *0.02 h* | *0.02 h* | *0.02 h* |" in text
    assert "Together: 4 runs, about 0.62 GPU-hours on one a card (arithmetic from measured steps" in text
    assert "recorded runs of smollm2 it was within 20 %" in text
    assert "6 runs without an estimate (too large for one card)" in text
    assert "0.02 h" not in formats.markdown(table, measured_only=True)


def test_the_page_and_the_terminal_say_the_same(tmp_path, capsys):
    space = written(tmp_path)
    held = values(document(space))
    assert of_method(held, "none")["cells"][0]["waiting"] == [1, 0.0167, 0, ""]
    assert of_method(held, "dual_lora")["cells"][0]["waiting"] == [6, 0, 6, "too large for one card"]
    assert held["hours"]["card"] == "a card"
    assert "within 20 %" in held["hours"]["basis"]["smollm2"]
    assert held["coverage"][0]["waiting"][:3] == [10, 0.617, 6]
    assert main(["tables", "--explain", "table_x", "none", "BoolQ", "--home", str(tmp_path)]) == 0
    assert "1 run, about 0.02 GPU-hours on one a card" in capsys.readouterr().out


def test_runs_that_failed_are_to_be_done_again(tmp_path):
    failed = [record("dual_lora", seed, status="out_of_memory") for seed in range(5)]
    cell = of_method(values(document(workspace(tmp_path, *failed))), "dual_lora")["cells"][0]
    assert cell["word"] == "out_of_memory (×5)"
    assert cell["waiting"][0] == 6  # the five, and one that has no record


def test_without_a_file_a_cell_says_so(tmp_path):
    space = workspace(tmp_path, record("lora"))
    cell = of_method(values(document(space)), "dual_lora")["cells"][0]
    assert cell["waiting"] == [6, 0, 6, gpu_hours.UNKNOWN]
    assert "bench gpu-hours" in gpu_hours.UNKNOWN
    assert space.stale_hours() == []


def test_commands_that_choose_by_trials_take_the_trials_too(tmp_path):
    rates = EXPERIMENT.replace("seed: 0,1,2,3,4,5", "seed: 100\n      recipe.learning_rate: 1e-4,2e-4,4e-4")
    for name, text in (("rates", rates), ("main", EXPERIMENT.replace("  block: A", "  trials: [rates]\n  block: A"))):
        (tmp_path / f"{name}.yaml").write_text(text)
    experiments = definition.read_all(tmp_path)
    seconds = {"method=none": 0.0, "method=lora": 3600.0, "method=dual_lora": 7200.0}
    hours = GpuHours("a card", seconds={"rates": seconds, "main": seconds}, experiments=experiments)
    tried = parse(record("lora", 100, learning_rate=1e-4))
    runs = [run for run in experiments["main"].runs() if run["method"] == "lora"]
    # Six seeds; of the trials two rates of LoRA, three of Dual LoRA and the untrained base are left.
    assert hours.of_commands(experiments["main"], runs, [tried]) == Waiting(6 + 2 + 3 + 1, 6 + 2 + 3 * 2)


def test_a_model_without_recorded_runs_has_no_error_to_state():
    hours = GpuHours(errors={"smollm2": (0.2, 0.5), "minilm": (0.1, 0.9)})
    assert "within 20 % of what they took, for nine in ten within 90 %" in hours.basis(["smollm2", "minilm"])
    assert "how far off is not known: no whole run of llama is recorded" in hours.basis(["llama", "smollm2"])


def test_the_file_is_out_of_date_when_a_sweep_or_a_setting_changed_and_not_for_a_comment(tmp_path, capsys):
    space = written(tmp_path)
    assert main(["tables", "--home", str(tmp_path)]) == 0
    check = ["tables", "--check", "--home", str(tmp_path)]
    (tmp_path / "configs" / "a.yaml").write_text("# another reason\nrank: 8\n")
    (tmp_path / "configs" / "method").mkdir()
    (tmp_path / "configs" / "method" / "own.yaml").write_text("rank: 2\n")  # of no experiment
    assert main(check) == 0
    (tmp_path / "configs" / "a.yaml").write_text("# another reason\nrank: 4\n")
    assert main(check) == 1
    assert "gpu_hours.json is older than configs: run python run.py bench gpu-hours" in capsys.readouterr().out
    longer = dataclasses.replace(
        space.experiment("table_x"), sweep={**space.experiment("table_x").sweep, "seed": ("0",)}
    )
    hours = dataclasses.replace(space.hours, experiments={"table_x": longer})
    assert "older than configs, table_x" in gpu_hours.stale(hours, tmp_path / "configs")[0]


@pytest.mark.parametrize("text", ["{", "[]", '{"card": 1}'])
def test_a_damaged_file_is_named(tmp_path, text, capsys):
    space = written(tmp_path)
    (tmp_path / "results" / "benchmarks" / gpu_hours.FILE).write_text(text)
    with pytest.raises(ValueError, match=r"gpu_hours\.json cannot be read .* bench gpu-hours"):
        _ = space.hours
    assert main(["tables", "--home", str(tmp_path)]) == 2
    assert "gpu_hours.json cannot be read" in capsys.readouterr().err


def test_only_what_changed_is_planned_again(tmp_path, monkeypatch, capsys):
    """A whole pass takes minutes: here of two experiments, and their plans counted."""
    both = {name: Workspace(shipped.home()).experiment(name) for name in ("table_nlg", "table_quick")}
    monkeypatch.setattr(Workspace, "experiments", lambda _: both)
    planned: list[str] = []
    monkeypatch.setattr(benchmark, "seconds_of", lambda experiment, card: planned.append(experiment.name) or {"": 1.0})
    bench = ["bench", "gpu-hours", "--output", str(tmp_path)]

    def again(*words: str) -> list[str]:
        planned.clear()
        assert main([*bench, *words]) == 0
        return planned

    assert again() == ["table_nlg", "table_quick"]
    assert again() == []
    both["table_nlg"] = dataclasses.replace(both["table_nlg"], sweep={**both["table_nlg"].sweep, "seed": ("0",)})
    assert again() == ["table_nlg"]
    assert again("--card", "h100") == ["table_nlg", "table_quick"]
    assert again("--card", "h100", "--all") == ["table_nlg", "table_quick"]
    assert gpu_hours.read(tmp_path, both).card == CARDS["h100"].name


def test_the_committed_file_is_of_today():
    """`tables --check` says the same; here also the arithmetic, for a run of each kind of task."""
    space = Workspace(shipped.home())
    assert space.stale_hours() == []
    assert space.hours.errors == hours.ERRORS, gpu_hours.COMMAND
    planned = {
        "table_glue": {"model": "roberta_base", "task": "glue/rte", "method": "dual_lora"},
        "table_nlg": {"model": "gpt2_medium", "task": "e2e", "method": "dora"},
        "table_commonsense": {"model": "llama3_70b,llama", "method": "lora"},
    }
    if os.environ.get("DUAL_LORA_DATA"):
        planned |= {"study_rank": {"method": "lora"}, "glue_minilm": {"task": "glue/cola", "method": "full"}}
    for name, choices in planned.items():
        found = seconds_of(space.experiment(name), CARDS["h200"], choices)
        assert found
        held = {run: space.hours.seconds[name][run] for run in found}
        assert held == found, f"{name}: {gpu_hours.COMMAND}"
