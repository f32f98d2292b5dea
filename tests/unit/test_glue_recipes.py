"""Every GLUE recipe composes, says where each number comes from, and keeps the budgets of the published rows."""

import functools
from pathlib import Path

import pytest
import yaml

from dual_lora.config.compose import CONFIGS, compose, options
from dual_lora.tasks.glue.specs import SPECS

FILES = sorted((CONFIGS / "recipe").glob("*/glue/*/*.yaml"))
OWN = [path for path in FILES if not path.stem.startswith("_")]
WORDS = {"name", "sources", "learning_rates"}
ALWAYS = {"global_batch", "learning_rate", "epochs"}  # what a recipe or the lines it shares must have a source for


@functools.cache
def read(path):
    return yaml.safe_load(path.read_text())


def parts(path):
    """Model, task and method of a recipe file."""
    model, _, task, file = path.relative_to(CONFIGS / "recipe").parts
    return model, task, Path(file).stem


def settings(path):
    """Dotted name -> value of all a recipe file sets (its own lines, not those of its defaults)."""
    values = read(path)
    flat = {key: value for key, value in values["recipe"].items() if key not in WORDS}
    for group in ("method", "model"):
        pending = [(f"{group}.{key}", value) for key, value in values.get(group, {}).items()]
        while pending:
            name, value = pending.pop()
            if isinstance(value, dict):
                pending += [(f"{name}.{key}", inner) for key, inner in value.items()]
            else:
                flat[name] = value
    return flat


def test_the_published_combinations_have_recipes():
    assert len(OWN) > 150
    eight = set(SPECS) - {"wnli"}
    for model, method in (
        ("roberta_base", "lora"),
        ("roberta_large", "lora"),
        ("deberta_xxl", "lora"),
        ("minilm", "lora"),
    ):
        tasks = {parts(path)[1] for path in OWN if parts(path)[::2] == (model, method)}
        assert tasks == ({"cola", "sst2", "mrpc", "stsb", "rte"} if model == "minilm" else eight)
    assert {path.stem for path in (CONFIGS / "recipe" / "default" / "glue").glob("*.yaml")} == set(SPECS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(parts(path)))
def test_every_number_has_a_source(path):
    values = read(path)
    assert set(values["recipe"].get("sources", {})) == set(settings(path))
    assert all(str(source).strip() for source in values["recipe"]["sources"].values())


@pytest.mark.parametrize("path", OWN, ids=lambda path: "/".join(parts(path)))
def test_a_recipe_is_named_after_its_place(path):
    model, task, method = parts(path)
    assert read(path)["recipe"]["name"] == f"{model}/glue/{task}/{method}"
    assert method in options("method")


@pytest.mark.parametrize("path", OWN, ids=lambda path: "/".join(parts(path)))
def test_shared_lines_are_those_of_the_same_model_and_task(path):
    shared = [entry for entry in read(path).get("defaults", []) if entry != "_self_"]
    assert shared in ([], [f"/recipe/{path.parent.relative_to(CONFIGS / 'recipe')}/_common"])
    assert not shared or path.with_name("_common.yaml").exists()


@pytest.mark.parametrize("model", sorted({parts(path)[0] for path in OWN if parts(path)[1] == "rte"}))
def test_recipes_compose_and_command_line_values_win(model):
    methods = sorted(parts(path)[2] for path in OWN if parts(path)[:2] == (model, "rte"))
    cells = compose(["-m", f"model={model}", "task=glue/rte", f"method={','.join(methods)}"])
    assert [cell.recipe.name for cell in cells] == [f"{model}/glue/rte/{name}" for name in methods]
    assert all(set(cell.recipe.sources) >= ALWAYS for cell in cells)
    assert all(cell.protocol.name == "paper" and cell.protocol.checkpoint == "best_dev" for cell in cells)
    (cell,) = compose([f"model={model}", "task=glue/rte", "method=lora", "recipe.learning_rate=0.5", "method.r=3"])
    assert (cell.recipe.learning_rate, cell.method.settings["r"]) == (0.5, 3)


def _value(path, name):
    common = path.with_name("_common.yaml")
    merged = {**(settings(common) if common.exists() else {}), **settings(path)}
    return merged[name]


def test_dual_lora_has_loras_budget_and_scale():
    pairs = [(path, path.with_name("lora.yaml")) for path in OWN if path.stem == "dual_lora"]
    assert len(pairs) == 4 * 8 + 5 + 3  # MiniLM on five tasks, three small encoders on CoLA
    for dual, lora in pairs:
        first, second = _value(dual, "method.r_magnitude"), _value(dual, "method.r_direction")
        assert first + second == _value(lora, "method.r")
        scale = _value(lora, "method.lora_alpha") / _value(lora, "method.r")
        assert _value(dual, "method.alpha") / (first * second) ** 0.5 == scale


def test_debertas_rank_is_the_one_of_the_published_parameter_count():
    hidden, layers = 1536, 48
    rank = _value(CONFIGS / "recipe/deberta_xxl/glue/mnli/lora.yaml", "method.r")
    assert layers * 2 * rank * (hidden + hidden) == 4_718_592


def test_the_batch_is_that_of_all_gpus_of_the_scripts():
    assert _value(CONFIGS / "recipe/roberta_base/glue/cola/lora.yaml", "global_batch") == 2 * 32
    assert _value(CONFIGS / "recipe/roberta_base/glue/rte/lora.yaml", "global_batch") == 8 * 32
    assert _value(CONFIGS / "recipe/deberta_xxl/glue/qnli/lora.yaml", "global_batch") == 8 * 6


@pytest.mark.parametrize("task", sorted(SPECS))
def test_a_combination_without_a_recipe_runs_on_the_tasks_default_and_says_so(task):
    cells = compose(["-m", "model=tiny_roberta", f"task=glue/{task}", "method=lora,full,dual_lora", "protocol=strict"])
    assert all(cell.recipe.is_default and cell.recipe.name == f"default/glue/{task}" for cell in cells)
    assert all(set(cell.recipe.sources) >= ALWAYS for cell in cells)
    assert len({cell.recipe.learning_rate for cell in cells}) == 3
    assert all(cell.task.headline for cell in cells)
    assert {(cell.protocol.checkpoint, cell.protocol.validation_fraction) for cell in cells} == {("last", 0.1)}
