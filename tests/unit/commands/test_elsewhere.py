"""A user who does not stand in the checkout: runs are where the commands look for them that read runs."""

from __future__ import annotations

import shlex
from importlib import import_module
from pathlib import Path

import pytest

from dual_lora import shipped
from dual_lora.commands import COMMANDS, OWN_PARSER, main
from dual_lora.commands.parser import Parser
from dual_lora.config.compose import compose_one
from tests import ROOT
from tests.small_cells import COMMON, DESCRIBING

CELL = [*DESCRIBING, *COMMON, "method=none"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the suite takes for its checkout; the user stands next to it."""
    (tmp_path / "checkout" / "results").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(shipped, "_CHECKOUT", tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "checkout"


@pytest.mark.parametrize("has_runs", [False, True], ids=["new", "has_runs_there"])
def test_a_run_is_where_the_commands_that_read_it_look(
    has_runs: bool, checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the checkout; but who already has records in ./results, of older versions, goes on there."""
    here = Path.cwd()
    if has_runs:
        (here / "results" / "records").mkdir(parents=True)
    assert main(CELL) == 0
    holder, other = (here, checkout) if has_runs else (checkout, here)
    [record] = (holder / "results" / "records").glob("*.json")
    assert not list(other.rglob("*.json"))
    shown = " ".join(capfd.readouterr().out.split())
    where = record.relative_to(here) if has_runs else record
    assert f"record: {where} next: python {checkout}/run.py tables" in shown
    assert main(["status"]) == 0
    assert "1 runs: 1 done" in capfd.readouterr().out
    assert main(["compare", record.stem, record.stem]) == 0
    assert main(["rescore", "--all", "--metrics", "BLEU"]) == 0
    assert f"[1/1] {record.stem}: BLEU" in capfd.readouterr().out
    kept = record.read_bytes()
    assert main(CELL) == 0
    assert record.read_bytes() == kept, "a finished run is not run twice"


def test_every_command_looks_in_the_same_place(checkout: Path) -> None:
    for place, made in ((checkout, "records"), (Path.cwd(), "local/evaluations"), (Path.cwd(), "records")):
        (place / "results" / made).mkdir(parents=True, exist_ok=True)
        assert Path(compose_one(CELL).results).absolute() == place / "results"
        found = set()
        for name in COMMANDS.keys() - set(OWN_PARSER):
            parser, module = Parser(name, ""), import_module(f"dual_lora.commands.{name.replace('-', '_')}")
            module.options(parser)
            looks = (
                parser.get_default("results"),
                parser.get_default("home") and parser.get_default("home") / "results",
            )
            found |= {name for one in looks if one is not None and Path(one).absolute() == place / "results"}
            assert all(one is None or Path(one).absolute() == place / "results" for one in looks), name
        assert found >= {"clean", "compare", "export", "pack", "rescore", "status", "tables"}


def test_a_printed_command_names_another_results_folder_and_only_another(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, word in ((checkout / "results", ""), (Path("a b"), " 'results=a b'")):
        folder.mkdir(exist_ok=True)
        assert shipped.word_for(folder) == shlex.split(word)
        assert main(["tune", "model=tiny_llama", "task=e2e", "method=lora", f"results={folder}"]) == 1
        [line] = capsys.readouterr().out.splitlines()
        assert line.startswith(f"python {checkout}/run.py -m model=tiny_llama ")
        assert line.endswith(f"profile=trial{word}")


def test_in_the_checkout_the_folder_is_named_as_it_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert compose_one(CELL).results == "results"
