"""From a command line to checked settings: choices, recipes, profiles, and errors a person can act on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time

import pytest
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from dual_lora.config import ConfigError, LaunchConfig, RunConfig, recipes
from dual_lora.config.choices import options
from dual_lora.config.compose import compose
from tests import ROOT


def one(*arguments: str) -> RunConfig:
    (cell,) = compose(list(arguments))
    return cell


def test_defaults_are_the_real_thing() -> None:
    cell = one("model=llama2", "task=commonsense", "method=dual_lora")
    assert (cell.profile.name, cell.data.source, cell.protocol.name) == ("full", "hub", "paper")
    assert cell.profile.train_examples is None
    assert cell.profile.max_steps is None
    assert cell.profile.test_items is None
    assert cell.recipe.name == "llama2/commonsense/dual_lora"


def test_a_combination_without_a_recipe_runs_on_the_default_and_says_so() -> None:
    cell = one("model=tiny_llama", "task=commonsense", "method=vera")
    assert cell.recipe.name == "default/commonsense"
    assert cell.recipe.is_default


def test_the_command_line_wins_over_the_recipe() -> None:
    recipe = one("model=llama2", "method=lora").recipe
    assert recipe.learning_rate != 0.5
    assert one("model=llama2", "method=lora", "recipe.learning_rate=0.5").recipe.learning_rate == 0.5
    assert one("model=llama2", "method=lora", "method.r=7").method.settings["r"] == 7


def test_one_protocol_name_resolves_per_task() -> None:
    commonsense, e2e = one("task=commonsense", "protocol=strict"), one("task=e2e", "protocol=strict")
    assert (commonsense.protocol.task, e2e.protocol.task) == ("commonsense", "e2e")
    assert one("model=roberta_base", "task=glue/rte", "protocol=restricted").protocol.task == "glue"


def test_demo_is_smollm2_e2e_dual_lora_on_the_sample() -> None:
    cell = one("profile=demo")
    assert (cell.model.name, cell.task.name, cell.method.name) == ("smollm2", "e2e", "dual_lora")
    assert cell.data.source == "sample"
    assert one("profile=demo", "method=lora").method.name == "lora"


def test_profiles_differ_only_in_sizes() -> None:
    full, quick, study = (one("task=e2e", f"profile={name}") for name in ("full", "quick", "study"))
    for other in (quick, study):
        assert (other.model, other.task, other.method) == (full.model, full.task, full.method)
        assert (other.protocol, other.recipe, other.data) == (full.protocol, full.recipe, full.data)


def test_a_sweep_is_the_product_of_its_choices() -> None:
    cells = compose(["-m", "task=e2e", "method=lora,dora,dual_lora", "seed=0,1"])
    assert {(cell.method.name, cell.seed) for cell in cells} == {
        (method, seed) for method in ("lora", "dora", "dual_lora") for seed in (0, 1)
    }


SWEEP = ["task=glue/rte,e2e", "model=tiny_gpt2", "method=lora,dual_lora", "recipe.epochs=1,2", "seed=1,0"]


def test_a_cell_of_a_sweep_is_the_cell_of_its_own_command() -> None:
    cells = compose(["-m", *SWEEP])
    assert len(cells) == 16
    for cell in (cells[0], cells[5], cells[15]):
        words = [f"task={cell.task.name}", "model=tiny_gpt2", f"method={cell.method.name}"]
        assert cell == one(*words, f"recipe.epochs={cell.recipe.epochs:g}", f"seed={cell.seed}")


def test_cells_composed_in_several_processes_are_the_same() -> None:
    """The command forks while it is small; this process has torch loaded and composes alone."""
    code = (
        "import sys; from dual_lora.config.compose import compose; cells = compose(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; print([cell.to_dict() for cell in cells])"
    )
    words = [sys.executable, "-c", code, "-m", *SWEEP]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == [cell.to_dict() for cell in compose(["-m", *SWEEP])]


def test_no_setting_is_made_from_the_seed() -> None:
    """A sweep composes cells that differ in their seed alone once."""
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert not re.search(r"\$\{[^}]*\bseed\b", path.read_text(encoding="utf-8")), path


def test_an_experiment_is_a_sweep_and_the_command_line_narrows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUAL_LORA_DATA", "/data")
    cells = compose(["experiment=glue_minilm", "seed=3", "method=lora", "recipe.learning_rate=0.5"])
    assert [cell.task.name for cell in cells] == [f"glue/{name}" for name in ("cola", "sst2", "mrpc", "stsb", "rte")]
    assert {(cell.seed, cell.method.name, cell.recipe.learning_rate) for cell in cells} == {(3, "lora", 0.5)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=lama2"], ["lama2", "llama2", "smollm2"]),
        (["task=glue/colla"], ["glue/colla", "glue/cola"]),
        (["method=dual_lor"], ["dual_lor", "dual_lora", "dora"]),
        (["protocol=restricted"], ["restricted", "paper", "strict"]),
        (["protocol=stict"], ["protocol=stict does not exist; did you mean 'strict'? Legal: paper,"]),
        (["seed=0,1"], ["seed=0,1: several values are a sweep; give -m"]),
        (["method=DORA"], ["'DORA'; did you mean 'dora'?"]),
        (["task=E2E"], ["'E2E'; did you mean 'e2e'?"]),
        (["method=mine"], ["unknown method 'mine'", "docs/own_method.md"]),
        (["mehtod=lora"], ["mehtod", "method"]),
        (["recipe.learning_rat=1"], ["learning_rat", "learning_rate"]),
        (["method.alfa=1"], ["alfa", "alpha"]),
        (["method.rnak=4"], ["'method.rnak'; LoRA's rank is r_magnitude = r_direction = rank/2 here. Legal: alpha,"]),
        (["method.r=4"], ["'method.r'; LoRA's r is r_magnitude = r_direction = r/2 here"]),
        (["method.rank_patern={}"], ["did you mean 'rank_pattern'? Legal: alpha, alpha_pattern, bias, budget,"]),
        (["method.delta_warmup_step=1"], ["did you mean 'delta_warmup_steps'?"]),
        (["method=lora", "method.rnak=4"], ["'method.rnak'; did you mean 'r'? Legal: alora_invocation_tokens,"]),
        (["method=lora", "method.bais=all"], ["did you mean 'bias'?"]),
        (["method=full", "method.r=4"], ["unknown setting 'method.r'. Legal: budget,"]),
        (["seed=x"], ["seed", "x"]),
        (["recipe.epochs=0"], ["epochs", "0"]),
        (["recipe.global_batch=-1"], ["global_batch", "-1"]),
        (["data.source=disk"], ["disk", "hub", "local", "sample"]),
        (["data.source=local"], ["data.dir"]),
        (["-m", "seed=0,x"], ["seed", "x"]),
        (["-m", "seed=0,-1"], ["seed", "-1"]),
        (["-m", "method=lora,dual_lor"], ["dual_lor", "dual_lora"]),
        (["-m", "mehtod=lora,dora"], ["mehtod", "method"]),
    ],
    ids=lambda value: "_".join(value)[:30] if isinstance(value, list) else None,
)
def test_a_bad_value_is_named_with_the_legal_ones(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(arguments)
    for word in words:
        assert word in str(caught.value)


def test_an_absent_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUAL_LORA_DATA", raising=False)
    with pytest.raises(ConfigError, match="variable DUAL_LORA_DATA, which is unset: the folder of data") as caught:
        compose(["experiment=glue_minilm"])
    assert "\n" not in str(caught.value)


def test_every_choice_composes() -> None:
    """Side by side, the n-th of each group in one cell: composing does not mind that an encoder writes no text."""
    least = {"model": 15, "task": 12, "method": 20, "profile": 4, "launch": 3}
    names = {group: options(group) for group in least}
    assert all(len(names[group]) >= least[group] for group in least)
    for number in range(max(len(found) for found in names.values())):
        chosen = {group: found[number % len(found)] for group, found in names.items()}
        cell = one(*(f"{group}={name}" for group, name in chosen.items()))
        assert {group: getattr(cell, group).name for group in chosen} == chosen


@pytest.mark.parametrize("name", [n for n in recipes.names() if n.split("/")[1] not in ("commonsense", "glue")])
def test_every_number_has_a_source(name: str) -> None:
    """Those of commonsense and GLUE have tests of their own. That each composes: tests/compositions.py."""
    recipe = recipes.find(name)
    assert set(recipe.sources) == set(recipe.values) >= {"global_batch", "learning_rate", "epochs"}
    assert all(source.strip() for source in recipe.sources.values())


def test_what_a_launcher_does_not_state_is_the_default_of_its_settings() -> None:
    assert one("launch=local").launch == LaunchConfig(name="local")
    assert one("launch=slurm", "launch.qos=high").launch.qos == "high"


def test_help_and_cfg_answer_in_two_seconds() -> None:
    for arguments, expected in ((["--help"], "dual_lora_no_relu"), (["--cfg", "job"], "learning_rate")):
        begun = time.process_time()
        done = subprocess.run(
            [sys.executable, "run.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert expected in done.stdout
        assert "torch" not in done.stderr
        assert time.process_time() - begun < 2.0


def test_a_label_is_not_part_of_the_identity_and_a_rate_is() -> None:
    import dataclasses

    from dual_lora.runs.identity import identity

    def run_id(cell: RunConfig) -> str:
        return str(identity(cell, dtype="float32", model_fingerprint={}, data_fingerprint={})["run_id"])

    cell = one("task=e2e")
    assert run_id(cell) == run_id(dataclasses.replace(cell, model=dataclasses.replace(cell.model, label="other")))
    assert run_id(cell) == run_id(one("task=e2e", "launch.parallel=3", "results=elsewhere", "tracking=wandb"))
    assert run_id(cell) != run_id(one("task=e2e", "recipe.learning_rate=1e-3"))
    assert run_id(cell) != run_id(one("task=e2e", "seed=1"))
    assert run_id(one("task=e2e", "method=none")) == run_id(one("task=e2e", "method=none", "seed=1"))


def test_a_sweep_is_one_experiment() -> None:
    with pytest.raises(ConfigError, match="one command for each|one experiment"):
        compose(["-m", "experiment=glue_minilm,nlg_smollm2", "seed=0"])


def test_hydras_own_settings_are_whole_again_after_a_composition():
    """Another Hydra application in the same process has its loggers and launchers."""
    compose(["model=tiny_llama", "task=e2e", "method=lora"])
    held = ConfigStore.instance().load("hydra/config.yaml").node
    assert held == OmegaConf.structured(HydraConf())
