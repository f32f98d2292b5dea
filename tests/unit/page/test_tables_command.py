"""`run.py tables` writes the page, and `--check` holds it."""

from __future__ import annotations

import pytest

from dual_lora.commands import main
from tests.unit.page.page_builder import values, workspace
from tests.unit.report.report_builder import EXPERIMENT, record


@pytest.fixture
def home(tmp_path):
    space = workspace(tmp_path, record("lora"), record("lora", 1), record("lora", 2, profile="demo", source="sample"))
    assert main(["tables", "--home", str(tmp_path)]) == 0
    return space


def check(space) -> int:
    return main(["tables", "--check", "--home", str(space.root)])


def test_the_page_is_written_without_a_demo_and_held(home, capsys):
    assert {run["profile"] for run in values(home.page.read_text())["runs"].values()} == {"study"}
    assert check(home) == 0
    home.page.write_text(home.page.read_text().replace('"v":60', '"v":61'))
    assert check(home) == 1
    assert "results/report.html is not what the committed records give" in capsys.readouterr().out


def test_commands_that_an_explanation_prints_find_its_results_and_own_files(home, capsys, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    asked = ["tables", "--explain", "table_x", "dual_lora", "BoolQ", "--home", str(home.root)]
    assert main([*asked, "hydra.searchpath=[file:///mine]"]) == 0
    line = f"python run.py -m experiment=table_x method=dual_lora results={home.root}/results 'hydra.searchpath=["
    assert f"        {line}file:///mine]'\n" in capsys.readouterr().out
    for file in (home.root / "experiments").glob("*.yaml"):
        file.write_text(file.read_text().replace("none,", "mine,none,"))
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert f"        {line.removesuffix(' ' + chr(39) + 'hydra.searchpath=[')}\n" in shown
    assert "What the commands lack: method=mine: not in configs/. Give hydra.searchpath=[file://FOLDER] here" in shown


def test_one_table_alone_leaves_the_page(home):
    before = home.page.stat().st_mtime_ns
    assert main(["tables", "--only", "table_x", "--home", str(home.root)]) == 0
    assert home.page.stat().st_mtime_ns == before


def test_a_damaged_record_is_named_and_the_rest_is_shown(home, capsys):
    damaged, *_ = (path for path in sorted(home.records.glob("*.json")) if '"demo"' not in path.read_text())
    damaged.write_text("{")
    assert main(["tables", "--home", str(home.root)]) == 2
    assert damaged.name in capsys.readouterr().err
    shown = values(home.page.read_text())
    assert len(shown["runs"]) == 1
    assert shown["made"]["refused"][0].startswith(f"results/records/{damaged.name} is damaged")


def test_records_of_another_folder_make_a_local_page(home, tmp_path):
    other = workspace(tmp_path / "other", record("dual_lora")).records
    assert main(["tables", "--records", str(other), "--home", str(home.root)]) == 0
    assert [run["method"] for run in values(home.local_page.read_text())["runs"].values()] == ["DUAL_LORA"]


def test_a_number_of_another_folder_is_explained_and_nothing_is_written(home, tmp_path, capsys):
    other = workspace(tmp_path / "other", record("lora", 1, {"boolq": 0.75})).records
    number = ["--explain", "table_x", "lora", "BoolQ"]
    assert main(["tables", *number, "--records", str(other), "--home", str(home.root)]) == 0
    assert "commonsense, seed 1: 75.000" in capsys.readouterr().out
    assert not home.local_page.exists()
    assert not home.local_tables.exists()
    assert main(["tables", *number, "--records", str(tmp_path / "none"), "--home", str(home.root)]) == 2


def test_a_number_is_explained_in_the_terminal(home, capsys):
    assert main(["tables", "--explain", "table_x", "lora", "BoolQ", "--home", str(home.root)]) == 0
    assert "commonsense, seed 1: 60.000" in capsys.readouterr().out
    assert main(["tables", "--explain", "table_x", "lora", "Bool", "--home", str(home.root)]) == 2


def test_a_number_of_one_block_of_a_table_is_explained_by_the_name_of_its_experiment(tmp_path, capsys):
    """The name is what a command or a record of the block says; the table is another file's."""
    part = EXPERIMENT.replace("  title: A table\n", "").replace("A block", "Other seeds").replace("0,1,2,3,4,5", "7")
    space = workspace(tmp_path, record("lora"), record("lora", 7, {"boolq": 0.75}))
    definitions = tmp_path / "experiments"
    (definitions / "part_x.yaml").write_text(part)
    (definitions / "table_x.yaml").write_text(EXPERIMENT.replace("  block:", "  blocks: [table_x, part_x]\n  block:"))
    home = ["--home", str(space.root)]
    assert main(["tables", *home]) == 0
    assert "Other seeds" in (space.tables / "table_x.md").read_text()
    capsys.readouterr()
    assert main(["tables", "--explain", "part_x", "lora", "BoolQ", *home]) == 0
    shown = capsys.readouterr().out
    assert "commonsense, seed 7: 75.000" in shown
    assert "seed 0" not in shown, "the other block"
    assert main(["tables", "--explain", "part_x", "lora", "Bool", *home]) == 2
    assert "'Bool' is not in table part_x" in capsys.readouterr().err
    assert main(["tables", "--only", "part_x", *home]) == 2
    assert "'part_x' is a block of table 'table_x': name that" in capsys.readouterr().err


def test_two_runs_are_compared_in_the_terminal(home, capsys):
    one, other = (path.stem for path in sorted(home.records.glob("*.json"))[:2])
    assert main(["compare", one, other[:10], f"results={home.records.parent}"]) == 0
    assert "seed" in capsys.readouterr().out
    assert main(["compare", one, "nothing", f"results={home.records.parent}"]) == 2
