"""One command line: which command a word is, how options are written, and what is said of an unknown word."""

from __future__ import annotations

import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dual_lora.commands import COMMANDS, main
from dual_lora.commands.parser import Parser, one_of
from dual_lora.config import ConfigError
from tests import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def parser(*, settings: bool = False) -> Parser:
    made = Parser("evaluate", "Score.")
    made.add_argument("--out", type=Path)
    made.add_argument("--gate", type=one_of("on", "off"), default="on")
    made.add_argument("--all", action="store_true")
    if settings:
        made.take_settings()
    return made


@pytest.mark.parametrize("words", [["--out", "F"], ["--out=F"], ["out=F"]])
def test_an_option_is_written_in_three_ways(words):
    assert parser().parse(words).out == Path("F")


def test_an_option_may_be_between_words_that_are_none():
    made = parser()
    made.add_argument("names", nargs="+")
    options = made.parse(["a", "out=F", "b", "--gate", "off"])
    assert (options.names, options.out, options.gate) == (["a", "b"], Path("F"), "off")


def test_run_settings_are_kept_apart_and_in_order():
    options = parser(settings=True).parse(
        ["model=llama", "out=F", "--gate", "off", "task.subsets=[a,b]", "~x=1", "+y=2"]
    )
    assert (options.out, options.gate) == (Path("F"), "off")
    assert options.settings == ["model=llama", "task.subsets=[a,b]", "~x=1", "+y=2"]


def test_run_settings_may_follow_a_list_or_a_flag():
    made = parser(settings=True)
    made.add_argument("--methods", nargs="+", type=one_of("lora", "dora"))
    options = made.parse(["--methods", "lora", "model=llama", "dora", "--out", "x=1", "--all", "x=1"])
    assert (options.methods, options.out, options.all) == (["lora", "dora"], Path("x=1"), True)
    assert options.settings == ["model=llama", "x=1"]
    with pytest.raises(ConfigError, match="argument --methods: 'model=llama'. Legal: lora, dora"):
        made.parse(["--methods", "model=llama"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--otu", "F"], "unknown word '--otu'; did you mean '--out'? Legal: --all, --gate, --help, --out"),
        (["model=llama"], "unknown word 'model=llama'"),
        (["gate=offf"], "'offf'; did you mean 'off'? Legal: on, off"),
        (["--al"], "unknown word '--al'; did you mean '--all'"),
        (["here"], "unknown word 'here'"),
    ],
)
def test_an_unknown_word_is_refused_with_the_legal_ones(words, message):
    with pytest.raises(ConfigError) as refused:
        parser().parse(words)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tabels"], "unknown command 'tabels'; did you mean 'tables'"),
        (["bench", "kernel"], "unknown benchmark 'kernel'; did you mean 'kernels'"),
        (["tables", "--chek"], "did you mean '--check'"),
        (["status", "--results"], "expected one argument"),
        (["status", "table_gleu"], "did you mean 'table_glue'"),
        (["tune", "learning_rates_e2e", "--then", "nlg"], "'nlg' does not exist"),
        (["evaluate"], "give at least model= and task="),
        (["evaluate", "modle=llama2"], "did you mean 'model'"),
        (["rescore"], "name RUN_IDs, or use --all"),
        (["export", "run=0"], "required: --out"),
        (["-m", "model=smollm2", "method=lora,dora", "--cfg", "job"], "give it without -m, with one value for each"),
        (
            ["--cfg=job", "--multirun", "model=smollm2"],
            "shows one run's settings and starts none",
        ),
        (["model=smollm2", "--info", "-m"], "-m plan=true lists the runs"),
        (["model=smollm2", "--resolve"], "--resolve fills in references of what --cfg job shows"),
        (["model=lama2"], "did you mean 'llama2'"),
        (["exec", "no_such_program"], "neither a console script, nor a module"),
    ],
)
def test_what_cannot_be_used_ends_with_2_and_a_sentence(words, message, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_the_readme_names_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z-]+)`", readme.partition("and the other commands:")[2].partition(". ")[0]))
    assert named | {"run", "tables"} == set(COMMANDS)


def test_help_lists_the_commands_and_each_explains_itself(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in COMMANDS.keys() - {"run", "bench", "exec"}:
        assert f"\n  {name} " in listed
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert f"python run.py {name}" in capsys.readouterr().out.split("\n\n", 1)[1]
    assert main(["run", "--help"]) == main(["bench", "--help"]) == main(["exec", "--help"]) == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_a_command_by_its_first_name(script, monkeypatch, capsys):
    text = script.read_text()
    assert len(text.splitlines()) <= 5
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    assert sys.path[0] == f"{ROOT}/", "a file here has the name of a library"
    command = text.partition("`")[2].partition("`")[0]
    assert f"usage: {command} [-h]" in capsys.readouterr().out.replace("\n", " ")


def test_output_that_nobody_reads_any_longer_ends_a_command_quietly():
    """As of a pipe into `head`, which has its lines."""
    command = [sys.executable, "run.py", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 128 + signal.SIGPIPE
