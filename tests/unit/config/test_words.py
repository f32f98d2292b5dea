"""What a shell passes on is taken as it is: no value needs a second pair of quotes, no folder's name is grammar."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.config.words import PATHS, for_hydra
from dual_lora.records.redaction import shareable
from dual_lora.runs import warm_start
from tests import ROOT, committed

NAMES = [
    r"br\x", r"br\\x", "br\\", "结果 é", "My Data (v2)", "br[/x]", "[x]", "{a}", "a#b;c", "a'b", 'a"b', "a,b", "~/x",
    "a=b", "$x", "a:b", "50 %", "?", "*", r"a\'b", "true", "1e3", "-x", "a\tb", "ａ", "🙂",
]  # fmt: skip
BASE = ["model=tiny_roberta", "task=glue/rte", "method=lora", "data.source=local"]


def values(words: list[str]) -> dict[str, list[object]]:
    """Return what Hydra's parser reads, key by key: the values of its sweep."""
    parser = OverridesParser.create()
    return {one.key_or_group: list(one.sweep_iterator()) if one.is_sweep_override() else [one.value()]
            for one in parser.parse_overrides(for_hydra(words)) if one.key_or_group}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_have_any_name(name: str) -> None:
    words = [f"{key}={name}" for key in PATHS]
    assert values(words) == {key: [name] for key in PATHS}
    if "," not in name:
        assert for_hydra(["-m", *words])[1:] == for_hydra(words)


def test_so_it_is_in_a_run_and_in_a_sweep() -> None:
    words = [*BASE, "results=结果 é", "data.dir=/d/My Data (v2)", r"model.path=br\x", "init_from=/i/[x]"]
    for configs in (compose(words), compose(["-m", *words, "seed=0,1"])):
        for config in configs:
            assert (config.results, config.data.dir) == ("结果 é", "/d/My Data (v2)")
            assert (config.model.path, config.init_from) == (r"br\x", "/i/[x]")
    assert [config.seed for config in configs] == [0, 1]


def test_in_a_sweep_a_comma_separates_two_folders() -> None:
    assert [c.results for c in compose(["-m", *BASE, "data.dir=/d", "results=a b,结"])] == ["a b", "结"]


def test_a_text_in_hydras_quotes_is_what_it_was() -> None:
    [config] = compose([*BASE, "results='a b'", 'data.dir="/d/(x)"', "++model.label=a#b"])
    assert (config.results, config.data.dir, config.model.label) == ("a b", "/d/(x)", "a#b")
    [config] = compose([*BASE, "data.source=hub", "data.dir=null", "model.path=null"])
    assert config.data.dir is config.model.path is None


def test_an_experiment_may_name_a_folder_with_a_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUAL_LORA_DATA", "/home/me/My Data (v2), old")
    configs = compose(["-m", "experiment=quick_commonsense", "seed=0", "method=lora"])
    assert {config.data.dir for config in configs} == {"/home/me/My Data (v2), old"}


def test_what_is_wrong_is_still_refused() -> None:
    with pytest.raises(ConfigError, match="recipe.epochs=1,2: several values are a sweep; give -m"):
        compose([*BASE, "recipe.epochs=1,2"])
    with pytest.raises(ConfigError, match=r"task.metrics=\[a: no list \[a,b\]"):
        compose([*BASE, "task.metrics=[a"])
    with pytest.raises(ConfigError, match=r"quoted once more: .*") as refused:
        compose([*BASE, "model.label=[a] b"])
    [word] = shlex.split(str(refused.value).partition("once more: ")[2])
    assert compose([*BASE, "data.source=sample", word])[0].model.label == "[a] b"


def test_a_printed_command_can_be_pasted() -> None:
    [config] = compose([*BASE, "init_from=auto", "data.dir=/d"])
    for name in NAMES:
        named = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=name), results=name)
        _, script, *words = shlex.split(warm_start.command(named))
        assert script == "run.py"
        read = values(words)
        assert (read["data.dir"], read["results"], read["task"]) == ([name], [name], ["glue/mnli"])


PRIVATE = [
    (["data.dir=/home/ana/My Data (v2)"], "data.dir=FOLDER"),
    (["data.dir='/home/ana/x'", "model.path=thesis"], "data.dir=FOLDER model.path=FOLDER"),
    (["init_from=/home/ana/runs/last.safetensors"], "init_from=FOLDER"),
    (["init_from=auto", "model.path=null"], "init_from=auto model.path=null"),
    (['launch.setup=["source /home/ana/x"]', "launch.account=ana"], "'launch.setup=***' 'launch.account=***'"),
    (["launch.container=apptainer exec --nv /home/ana/x.sif"], "'launch.container=***'"),
    (["launch.sbatch={comment: ana}", "launch.sbatch.comment=ana"], "'launch.sbatch=***' 'launch.sbatch.comment=***'"),
    (["+label=[a,/home/ana/x]"], "+label=FOLDER"),
    (["--scratch", "/ana", "--data=/ana", "/ana/x", "--gpus", "2"], "--scratch FOLDER --data=FOLDER FOLDER --gpus 2"),
    (["results=../ana", "adapter=ana"], "results=FOLDER adapter=FOLDER"),
    (["task=glue/rte", "launch.parallel=3"], "task=glue/rte launch.parallel=3"),
    (["method.target_modules=[q_proj,v_proj]"], "'method.target_modules=[q_proj,v_proj]'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "kept"), PRIVATE)
def test_a_kept_command_can_be_given_again_and_names_no_place_of_this_machine(words: list[str], kept: str) -> None:
    command = shareable(["python", "run.py", "-m", *words])
    assert command == f"python run.py -m {kept}"
    assert "ana" not in command
    if "FOLDER" not in kept and "***" not in kept:
        assert shlex.split(command)[3:] == words


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("a 结果".encode(), 0, b"runs.csv"), (b"a \xe9", 2, b"is no text: a name whose bytes are not UTF-8; rename it")],
)
def test_in_a_locale_of_other_letters_a_folder_may_have_any_name_that_is_text(tmp_path, name, code, said):
    """LANG=C where Python's own UTF-8 mode is switched off."""
    place = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(place + b"/records")
    record = min(committed.FOLDER.glob("*.json"))
    shutil.copy(record, place + b"/records/" + os.fsencode(record.name))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [
        sys.executable.encode(),
        os.fsencode(ROOT / "run.py"),
        b"export",
        b"out=" + place + b"/tables",
        b"results=" + place,
    ]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr
