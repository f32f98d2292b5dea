"""How Hydra finds recipes: a config source in its search path that makes `recipe/MODEL/TASK/METHOD` from a table.

Nodes are made when Hydra asks for them, so that a composition reads the one or two tables that it needs.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from dual_lora.config import recipes

_GROUP = "recipe/"


class RecipeSource(ConfigSource):
    """The tables of `configs/recipe` as configs of the group `recipe`."""

    @staticmethod
    def scheme() -> str:
        return "recipes"

    def available(self) -> bool:
        return recipes.RECIPES.is_dir()

    def is_config(self, config_path: str) -> bool:
        return self._find(config_path) is not None

    def is_group(self, config_path: str) -> bool:
        return False  # none is chosen by a person: a model, a task and a method choose theirs

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        found = self._find(config_path)
        assert found is not None
        header: dict[str, Any] = {"package": "_global_"}
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(found.node()), header)

    def _find(self, config_path: str) -> recipes.Recipe | None:
        name = config_path.removesuffix(".yaml")
        return recipes.find(name.removeprefix(_GROUP)) if name.startswith(_GROUP) else None


class RecipeSearchPath(SearchPathPlugin):
    """Puts the tables behind the folder of the shipped configs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("dual_lora", "recipes://")


def register() -> None:
    """Tell Hydra of the tables; more than once does no harm."""
    for plugin in (RecipeSource, RecipeSearchPath):
        Plugins.instance().register(plugin)
