"""Every commonsense recipe composes, says where each number comes from, and keeps the published rows' numbers."""

from pathlib import Path

import pytest
import yaml

from dual_lora.config.compose import CONFIGS, compose

FILES = sorted((CONFIGS / "recipe").glob("*/commonsense/*.yaml"))
OWN = [path for path in FILES if not path.stem.startswith("_")]
WORDS = {"name", "sources", "learning_rates"}
ALWAYS = {"global_batch", "learning_rate", "epochs"}  # what a recipe or the lines it shares must have a source for
# arXiv 2402.09353 Table 8: learning rate of DoRA by model and rank.
DORA = {
    "llama": {16: 2e-4, 32: 1e-4},
    "llama_13b": {16: 3e-4, 32: 2e-4},
    "llama2": {16: 2e-4, 32: 2e-4},
    "llama3": {16: 1e-4, 32: 1e-4},
}


def name_of(path):
    return f"{path.parent.parent.name}/commonsense/{path.stem}"


def settings(values):
    """Dotted name of everything a recipe file sets."""
    flat = set(values["recipe"]) - WORDS
    pending = [(f"method.{key}", value) for key, value in values.get("method", {}).items()]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            flat.add(name)
    return flat


@pytest.mark.parametrize("path", [*FILES, CONFIGS / "recipe/default/commonsense.yaml"], ids=name_of)
def test_every_number_has_a_source(path: Path):
    values = yaml.safe_load(path.read_text())
    assert set(values["recipe"]["sources"]) == settings(values)
    assert all(str(source).strip() for source in values["recipe"]["sources"].values())


@pytest.mark.parametrize("model", ["llama", "llama_13b", "llama2", "llama3", "llama3_70b", "qwen2", "smollm2"])
def test_recipes_compose_and_dual_lora_has_loras_budget_and_scale(model):
    names = sorted(path.stem for path in OWN if path.parent.parent.name == model)
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
    for path in OWN:
        if path.stem == "dual_lora" and path.parent.parent.name != "smollm2":
            sources = yaml.safe_load(path.read_text())["recipe"]["sources"]
            for name in ("learning_rate", "method.alpha", "method.dropout"):
                assert sources[name].startswith("guess")


def test_a_combination_without_a_recipe_runs_on_the_default_and_says_so():
    (cell,) = compose(["model=tiny_llama", "task=commonsense", "method=dual_lora"])
    assert (cell.recipe.name, cell.recipe.is_default, cell.recipe.learning_rate) == ("default/commonsense", True, 4e-4)
