"""Every commonsense recipe composes, says where each number comes from, and keeps the published rows' numbers."""

import pytest

from dual_lora.config import recipes
from dual_lora.config.compose import compose

NAMES = [name for name in recipes.names() if "/commonsense" in name]
OWN = [name for name in NAMES if not name.startswith(recipes.DEFAULT)]
ALWAYS = {"global_batch", "learning_rate", "epochs"}  # what a recipe or the lines it shares must have a source for
# arXiv 2402.09353 Table 8: learning rate of DoRA by model and rank.
DORA = {
    "llama": {16: 2e-4, 32: 1e-4},
    "llama_13b": {16: 3e-4, 32: 2e-4},
    "llama2": {16: 2e-4, 32: 2e-4},
    "llama3": {16: 1e-4, 32: 1e-4},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source(name):
    recipe = recipes.find(name)
    assert set(recipe.sources) == set(recipe.values) >= ALWAYS
    assert all(source.strip() for source in recipe.sources.values())


@pytest.mark.parametrize("model", ["llama", "llama_13b", "llama2", "llama3", "llama3_70b", "qwen2", "smollm2"])
def test_recipes_compose_and_dual_lora_has_loras_budget_and_scale(model):
    names = sorted(name.split("/")[-1] for name in OWN if name.startswith(f"{model}/"))
    assert {"lora", "dora", "dual_lora"} <= set(names)
    cells = [compose([f"model={model}", "task=commonsense", f"method={name}"])[0] for name in names]
    assert [cell.recipe.name for cell in cells] == [f"{model}/commonsense/{name}" for name in names]
    assert all(set(cell.recipe.sources) >= ALWAYS for cell in cells)
    by_name = {cell.method.name: cell for cell in cells}
    lora, dual = by_name["lora"].method.settings, by_name["dual_lora"].method.settings
    assert dual["r_magnitude"] + dual["r_direction"] == lora["r"] == 32
    assert dual["alpha"] / (dual["r_magnitude"] * dual["r_direction"]) ** 0.5 == lora["lora_alpha"] / lora["r"]
    assert all(cell.protocol.max_length_tokens == 256 for cell in cells)


@pytest.mark.parametrize("model", sorted(DORA))
def test_doras_rate_follows_the_rank_as_published(model):
    for rank, rate in DORA[model].items():
        arguments = [f"model={model}", "task=commonsense", "method=dora", f"method.r={rank}"]
        (cell,) = compose([*arguments, f"method.lora_alpha={2 * rank}"])
        assert cell.recipe.learning_rate == rate
        assert (cell.recipe.global_batch, cell.recipe.epochs, cell.recipe.warmup_steps) == (16, 3, 100)


def test_dual_loras_unknown_numbers_are_marked_as_guesses():
    unknown = [name for name in OWN if name.endswith("/dual_lora") and not name.startswith("smollm2/")]
    assert len(unknown) >= 6
    for name in unknown:
        for setting in ("learning_rate", "method.alpha", "method.dropout"):
            assert recipes.find(name).sources[setting].startswith("guess")


def test_a_combination_without_a_recipe_runs_on_the_default_and_says_so():
    (cell,) = compose(["model=tiny_llama", "task=commonsense", "method=dual_lora"])
    assert (cell.recipe.name, cell.recipe.is_default, cell.recipe.learning_rate) == ("default/commonsense", True, 4e-4)
