"""A comparison of methods is not one of regularisation: within a recipe, Dual LoRA drops what LoRA drops."""

from __future__ import annotations

import pytest

from dual_lora.config import ConfigError, recipes
from dual_lora.config.choices import method_values

DUAL = [name for name in recipes.names() if name.endswith("/dual_lora")]
# What is published of the baselines: arXiv 2402.09353 Table 8 and 2106.09685 Table 11.
PUBLISHED = {
    "llama/commonsense": 0.05,
    "llama_13b/commonsense": 0.05,
    "llama2/commonsense": 0.05,
    "llama3/commonsense": 0.05,
    "gpt2_medium/e2e": 0.1,
    "gpt2_medium/webnlg": 0.1,
    "gpt2_medium/dart": 0.0,
    "gpt2_large/e2e": 0.1,
}


def dropout(name: str) -> float:
    """Return the dropout on the adapter's input that a recipe comes to."""
    recipe, method = recipes.find(name), name.rpartition("/")[2]
    assert recipe is not None
    key = "dropout" if method.startswith("dual_lora") else "lora_dropout"
    return float(recipe.values.get(f"method.{key}", method_values(method)[key]))


@pytest.mark.parametrize("name", DUAL)
def test_dual_lora_has_loras_dropout(name: str) -> None:
    where = name.removesuffix("/dual_lora")
    assert dropout(name) == dropout(f"{where}/lora") == dropout(f"{where}/dora")
    assert dropout(name) == PUBLISHED.get(where, dropout(name))


def test_the_published_ones_are_among_them() -> None:
    assert {f"{where}/dual_lora" for where in PUBLISHED} <= set(DUAL)


def test_the_variant_without_dropout_differs_in_nothing_else() -> None:
    for name in DUAL:
        variant = recipes.find(name.replace("dual_lora", "dual_lora_no_dropout"))
        full = recipes.find(name)
        assert full is not None
        if dropout(name) > 0:
            assert variant is not None, name
            assert variant.values == {**full.values, "method.dropout": 0.0}
            assert variant.rates == full.rates
    assert method_values("dual_lora_no_dropout")["dropout"] == 0.0


def test_like_names_a_method_with_rows_of_its_own(tmp_path) -> None:
    table = """
tasks: [commonsense]
shared: {global_batch: [1, "a"], epochs: [1, "a"], learning_rate: [1.0e-3, "a"]}
methods:
  lora: {}
  dora: {like: lora}
  vera: {like: LIKE}
"""
    for like, message in (("dora", "itself like another"), ("pissa", "unknown method 'pissa'")):
        folder = tmp_path / like
        folder.mkdir()
        (folder / "llama.commonsense.yaml").write_text(table.replace("LIKE", like))
        with pytest.raises(ConfigError, match=message):
            recipes.names(folder)
