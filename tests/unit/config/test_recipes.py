"""Tables of recipes: what a row gives each task and method, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dual_lora.config import ConfigError, RecipeConfig, recipes
from dual_lora.config.choices import CONFIGS
from dual_lora.config.compose import compose
from tests import ROOT

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
TABLE = """
tasks: [cola, rte, sst2]
sources:
  script: run_{task}.sh
  six: {rte: "guess: as for ", other: ""}
shared:
  global_batch: [32, "{script}"]
  epochs: [{cola: 20, other: 5}, "{six}{script}"]
  adam_beta2: {rte: [0.98, "its own"]}
  warmup_steps: [{cola: 7}, "paper"]
methods:
  lora:
    learning_rate: {cola: [4.0e-4, "paper"], other: [{rte: 5.0e-4, sst2: 6.0e-4}, "guess"]}
    method.target_modules: [[query, value], "paper"]
    global_batch: [{rte: 64}, "its own"]
  dora:
    tasks: [cola]
    learning_rate: [{r4: 2.0e-4, r8: 1.0e-4}, "Table 8"]
    method.r: [8, "Table 8"]
  lora_plus:
    shared: false
    tasks: [rte]
    learning_rate: [1.0e-5, "paper"]
    method.optimizer.settings.ratio: [16.0, "paper"]
"""


def table(folder: Path, text: str, name: str = "minilm.glue") -> Path:
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def found(name: str, folder: Path) -> recipes.Recipe:
    recipe = recipes.find(name, folder)
    assert recipe is not None
    return recipe


def test_a_table_has_a_recipe_for_each_of_its_methods_and_their_tasks(tmp_path: Path) -> None:
    folder = table(tmp_path, TABLE)
    lora = [f"minilm/glue/{task}/lora" for task in ("cola", "rte", "sst2")]
    assert recipes.names(folder) == sorted([*lora, "minilm/glue/cola/dora", "minilm/glue/rte/lora_plus"])
    for absent in ("minilm/glue/rte/dora", "minilm/glue/mrpc/lora", "roberta_base/glue/cola/lora", "minilm", ""):
        assert recipes.find(absent, folder) is None


def test_rows_differ_by_task_and_a_methods_win(tmp_path: Path) -> None:
    folder = table(tmp_path, TABLE)
    cola, rte, sst2 = (found(f"minilm/glue/{task}/lora", folder) for task in ("cola", "rte", "sst2"))
    modules = {"method.target_modules": ["query", "value"]}
    assert cola.values == {"global_batch": 32, "epochs": 20, "warmup_steps": 7, "learning_rate": 4e-4, **modules}
    assert rte.values == {"global_batch": 64, "epochs": 5, "adam_beta2": 0.98, "learning_rate": 5e-4, **modules}
    assert sst2.values == {"global_batch": 32, "epochs": 5, "learning_rate": 6e-4, **modules}
    assert cola.sources["epochs"] == "run_cola.sh"
    assert rte.sources["epochs"] == "guess: as for run_rte.sh"
    assert [one.sources["global_batch"] for one in (cola, rte)] == ["run_cola.sh", "its own"]
    assert [one.sources["learning_rate"] for one in (cola, rte, sst2)] == ["paper", "guess", "guess"]
    assert all(set(one.sources) == set(one.values) for one in (cola, rte, sst2))


def test_a_method_that_takes_nothing_shared_has_its_own_rows_alone(tmp_path: Path) -> None:
    own = found("minilm/glue/rte/lora_plus", table(tmp_path, TABLE))
    assert own.values == {"learning_rate": 1e-5, "method.optimizer.settings.ratio": 16.0}
    node = own.node()
    assert node["method"] == {"optimizer": {"settings": {"ratio": 16.0}}}
    assert node["recipe"] == {"name": own.name, "learning_rate": 1e-5, "sources": dict(own.sources)}


OTHER = """
like: minilm
shared:
  epochs: [9, "its own"]
methods:
  lora:
    global_batch: [16, "its own"]
  bitfit:
    tasks: [rte]
    learning_rate: [1.0e-3, "its own"]
"""


def test_a_table_has_the_rows_of_the_model_that_it_is_like_under_its_own(tmp_path: Path) -> None:
    folder = table(table(tmp_path, TABLE), OTHER, "roberta_base.glue")
    theirs = {name for name in recipes.names(folder) if name.startswith("minilm/")}
    own = {name.replace("minilm", "roberta_base") for name in theirs} | {"roberta_base/glue/rte/bitfit"}
    assert set(recipes.names(folder)) == theirs | own
    base, other = (found(f"{model}/glue/rte/lora", folder) for model in ("minilm", "roberta_base"))
    assert other.values == base.values | {"epochs": 9, "global_batch": 16}
    assert other.sources == base.sources | {"epochs": "its own", "global_batch": "its own"}
    assert found("roberta_base/glue/rte/bitfit", folder).values["adam_beta2"] == 0.98


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (OTHER.replace("minilm", "minilmm"), ["like", "'minilmm'", "'minilm'"]),
        (OTHER.replace("minilm", "roberta_base"), ["like", "'roberta_base'", "minilm"]),
        (OTHER.replace("minilm", "default"), ["like", "'default'"]),
        (OTHER.replace("minilm", "[minilm]"), ["like", "minilm"]),
        (OTHER.replace("16,", "1e1,"), ["(like minilm)", "methods.lora.global_batch", "1e1"]),
        (OTHER.replace("lora:", "lorra:"), ["methods", "'lorra'", "'lora'"]),
        (OTHER.replace('\n    global_batch: [16, "its own"]', " 3"), ["methods.lora", "got 3"]),
    ],
)
def test_a_table_that_is_like_none_or_has_a_wrong_row_is_refused(wrong: str, words: list[str], tmp_path: Path) -> None:
    folder = table(table(tmp_path, TABLE), "tasks: []", "default.glue")
    with pytest.raises(ConfigError) as caught:
        recipes.find("roberta_base/glue/rte/lora", table(folder, wrong, "roberta_base.glue"))
    for word in ["configs/recipe/roberta_base.glue.yaml", *words]:
        assert word in str(caught.value)


def test_a_table_that_another_is_like_has_its_own_rows(tmp_path: Path) -> None:
    folder = table(table(tmp_path, TABLE), OTHER, "roberta_base.glue")
    table(folder, "like: roberta_base", "roberta_large.glue")
    with pytest.raises(ConfigError, match=r"roberta_base\.glue\.yaml: like: another table is like this one"):
        recipes.find("roberta_large/glue/rte/lora", folder)


def test_a_rate_by_rank_is_looked_up_when_the_rank_is_known(tmp_path: Path) -> None:
    dora = found("minilm/glue/cola/dora", table(tmp_path, TABLE))
    assert dora.values["learning_rate"] == 1e-4  # of its own rank
    assert dora.node()["recipe"]["learning_rates"] == {"r4": 2e-4, "r8": 1e-4}
    (other,) = compose(["model=llama", "task=commonsense", "method=dora", "method.r=5"])
    assert other.recipe.learning_rate == 1e-4  # not in the table: the rate of r = 32


def test_the_page_shows_a_table_that_is_read_as_it_says(tmp_path: Path) -> None:
    block = next(text for text in re.findall(r"(?:^(?: {4}.*)?\n)+", PAGE, re.M) if "Mini-BERT" in text)
    folder = table(tmp_path, re.sub(r"^ {4}", "", block, flags=re.M))
    cola, rte, full = (found(f"minilm/glue/{name}", folder) for name in ("cola/lora", "rte/lora", "rte/full"))
    assert len(recipes.names(folder)) == 3
    assert (cola.values["epochs"], rte.values["epochs"], full.values["epochs"]) == (20, 50, 10)
    assert (cola.values["learning_rate"], rte.values["learning_rate"]) == (4e-4, 5e-4)
    assert cola.sources["global_batch"] == "example/minibert run_cola.sh: 4 GPUs x 8"
    assert "warmup_ratio" in cola.values.keys() - full.values.keys()


@pytest.mark.parametrize(
    ("line", "wrong", "words"),
    [
        ("epochs:", "epoch:", ["shared.epoch", "'epochs'"]),
        ("method.target_modules", "method.target_module", ["methods.lora", "'method.target_modules'"]),
        ("method.optimizer.settings.ratio", "method.r_magnitude", ["methods.lora_plus", "method.r"]),
        ("{cola: 20,", "{coal: 20,", ["shared.epochs", "'coal'", "'cola'"]),
        ('[8, "Table 8"]', "8", ["methods.dora.method.r", "8", "source"]),
        ('[8, "Table 8"]', "[8]", ["methods.dora.method.r", "[8]", "source"]),
        ('[8, "Table 8"]', '[8, " "]', ["methods.dora.method.r", "source"]),
        ('[8, "Table 8"]', "[8, Table 8, page 2]", ["methods.dora.method.r", "source"]),
        ("  warmup_steps:", "  epochs:", ["duplicate key 'epochs'", "line 10"]),
        ("[1.0e-5,", "[1e-5,", ["methods.lora_plus.learning_rate", "1e-5", "2.0e-4, not 2e-4"]),
        ("learning_rate: [1.0e-5,", "epochs: [1,", ["minilm/glue/rte/lora_plus has no learning_rate"]),
        ("{r4: 2.0e-4, r8:", "{r4: 2.0e-4, r16:", ["minilm/glue/cola/dora", "'r8'", "r4, r16"]),
        ('"{script}"', '"{scirpt}"', ["shared.global_batch", "'scirpt'", "{script}"]),
        ("tasks: [cola, rte, sst2]", "tasks: [coal, rte, sst2]", ["tasks", "'coal'", "'cola'"]),
        ("tasks: [cola, rte, sst2]", "", ["tasks: [TASK, ...]", "cola"]),
        ("tasks: [cola]", "tasks: [mrpc]", ["methods.dora.tasks", "'mrpc'", "cola, rte, sst2"]),
        ("  dora:", "  dorra:", ["methods", "'dorra'", "'dora'"]),
        ("shared:\n", "share:\n", ["'share'", "'shared'"]),
        ("shared: false", "shared: fasle", ["methods.lora_plus.shared", "'fasle'"]),
        ("lora_plus:\n", "full: 3\n  lora_plus:\n", ["methods.full", "got 3"]),
    ],
)
def test_a_table_that_is_not_understood_is_refused(line: str, wrong: str, words: list[str], tmp_path: Path) -> None:
    assert line in TABLE
    with pytest.raises(ConfigError) as caught:
        recipes.names(table(tmp_path, TABLE.replace(line, wrong, 1)))
    for word in ["configs/recipe/minilm.glue.yaml", *words]:
        assert word in str(caught.value)


def test_a_table_of_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"minilmm\.glue\.yaml: unknown model 'minilmm'; did you mean 'minilm'"):
        recipes.names(table(tmp_path, TABLE, "minilmm.glue"))


def test_a_default_rate_is_by_method(tmp_path: Path) -> None:
    rows = "tasks: [e2e]\nshared:\n  learning_rate: [{other: 1.0e-4, full: 1.0e-5}, guess]\n"
    recipe = found("default/e2e", table(tmp_path, rows, "default.nlg"))
    assert recipe.rates == {"other": 1e-4, "full": 1e-5}
    with pytest.raises(ConfigError, match="unknown method 'ful'; did you mean 'full'"):
        recipes.names(table(tmp_path, rows.replace("full", "ful"), "default.glue"))


def test_the_shipped_tables_name_each_recipe_once_and_set_what_a_recipe_has() -> None:
    names = recipes.names()
    assert len(names) == len(set(names)) > 300
    assert {"lora", "dual_lora", "full"} <= {name.split("/")[-1] for name in names}
    assert RecipeConfig(name="x", global_batch=1, learning_rate=1, epochs=1).sources == {}


def test_a_rate_that_is_twice_loras_at_another_width_says_that_it_is_extrapolated() -> None:
    """The ratio was seen at SmolLM2's width alone; LoRA's start shrinks with the width and Dual LoRA's does not."""
    taken = []
    for name in recipes.names():
        model, *_, method = name.split("/")
        recipe, other = recipes.find(name), recipes.find(f"{name.rpartition('/')[0]}/lora")
        dora = recipes.find(f"{name.rpartition('/')[0]}/dora")
        if not method.startswith("dual_lora") or model == recipes.DEFAULT:
            continue
        assert recipe is not None
        assert other is not None
        assert dora is not None
        doubled = [2 * one.values["learning_rate"] for one in (other, dora)]
        width = yaml.safe_load((CONFIGS / "model" / f"{model}.yaml").read_text())["dimensions"]["hidden_size"]
        chosen = "best of" in recipe.sources["learning_rate"]
        if width != 576 and not chosen and recipe.values["learning_rate"] in doubled:
            taken.append(name)
            assert f"extrapolated from that width of 576 to {width:,}" in recipe.sources["learning_rate"], name
            assert recipe.sources["learning_rate"].startswith("guess"), name
    assert len(taken) >= 40
    for name in ("default/commonsense", "default/e2e", "default/glue/rte"):
        assert "extrapolated" in recipes.find(name).sources["learning_rate"]
