"""Every GLUE recipe composes, says where each number comes from, and keeps the budgets of the published rows."""

import pytest

from dual_lora.config import recipes
from dual_lora.config.compose import compose
from dual_lora.tasks.glue.specs import SPECS

OWN = [name for name in recipes.names() if "/glue/" in name and not name.startswith(recipes.DEFAULT)]
ALWAYS = {"global_batch", "learning_rate", "epochs"}  # what a recipe or the lines it shares must have a source for


def parts(name):
    """Model, task and method of a recipe."""
    model, _, task, method = name.split("/")
    return model, task, method


def test_the_published_combinations_have_recipes():
    assert len(OWN) > 150
    eight = set(SPECS) - {"wnli"}
    for model, method in (
        ("roberta_base", "lora"),
        ("roberta_large", "lora"),
        ("deberta_xxl", "lora"),
        ("minilm", "lora"),
    ):
        tasks = {parts(name)[1] for name in OWN if parts(name)[::2] == (model, method)}
        assert tasks == ({"cola", "sst2", "mrpc", "stsb", "rte"} if model == "minilm" else eight)
    assert {name.removeprefix("default/glue/") for name in recipes.names() if "default/glue/" in name} == set(SPECS)


@pytest.mark.parametrize("name", OWN)
def test_every_number_has_a_source(name):
    recipe = recipes.find(name)
    assert set(recipe.sources) == set(recipe.values) >= ALWAYS
    assert all(source.strip() for source in recipe.sources.values())


@pytest.mark.parametrize("model", sorted({parts(name)[0] for name in OWN if parts(name)[1] == "rte"}))
def test_recipes_compose_and_command_line_values_win(model):
    methods = sorted(parts(name)[2] for name in OWN if parts(name)[:2] == (model, "rte"))
    cells = compose(["-m", f"model={model}", "task=glue/rte", f"method={','.join(methods)}"])
    assert [cell.recipe.name for cell in cells] == [f"{model}/glue/rte/{name}" for name in methods]
    assert all(set(cell.recipe.sources) >= ALWAYS for cell in cells)
    assert all(cell.protocol.name == "paper" and cell.protocol.checkpoint == "best_dev" for cell in cells)
    (cell,) = compose([f"model={model}", "task=glue/rte", "method=lora", "recipe.learning_rate=0.5", "method.r=3"])
    assert (cell.recipe.learning_rate, cell.method.settings["r"]) == (0.5, 3)


def _value(name, setting):
    return recipes.find(name).values[setting]


def test_dual_lora_has_loras_budget_and_scale():
    pairs = [(name, name.removesuffix("dual_lora") + "lora") for name in OWN if parts(name)[2] == "dual_lora"]
    assert len(pairs) == 4 * 8 + 5 + 3  # MiniLM on five tasks, three small encoders on CoLA
    for dual, lora in pairs:
        first, second = _value(dual, "method.r_magnitude"), _value(dual, "method.r_direction")
        assert first + second == _value(lora, "method.r")
        scale = _value(lora, "method.lora_alpha") / _value(lora, "method.r")
        assert _value(dual, "method.alpha") / (first * second) ** 0.5 == scale


def test_debertas_rank_is_the_one_of_the_published_parameter_count():
    hidden, layers = 1536, 48
    rank = _value("deberta_xxl/glue/mnli/lora", "method.r")
    assert layers * 2 * rank * (hidden + hidden) == 4_718_592


def test_the_batch_is_that_of_all_gpus_of_the_scripts():
    assert _value("roberta_base/glue/cola/lora", "global_batch") == 2 * 32
    assert _value("roberta_base/glue/rte/lora", "global_batch") == 8 * 32
    assert _value("deberta_xxl/glue/qnli/lora", "global_batch") == 8 * 6


@pytest.mark.parametrize("task", sorted(SPECS))
def test_a_combination_without_a_recipe_runs_on_the_tasks_default_and_says_so(task):
    cells = compose(["-m", "model=tiny_roberta", f"task=glue/{task}", "method=lora,full,dual_lora", "protocol=strict"])
    assert all(cell.recipe.is_default and cell.recipe.name == f"default/glue/{task}" for cell in cells)
    assert all(set(cell.recipe.sources) >= ALWAYS for cell in cells)
    assert len({cell.recipe.learning_rate for cell in cells}) == 3
    assert all(cell.task.headline for cell in cells)
    assert {(cell.protocol.checkpoint, cell.protocol.validation_fraction) for cell in cells} == {("last", 0.1)}
