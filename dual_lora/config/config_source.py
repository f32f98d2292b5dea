"""How Hydra finds what ships: a config source of the folder `configs/`, of recipes made from tables, and of `settings`.

Not Hydra's `ConfigStore`, which it copies with all that is in it for each composition.

A recipe is made when Hydra asks for it, so that a composition reads the one or two tables that it needs. A file is read
once in a process: a sweep asks for the same files in each of its runs. It is kept pickled: Hydra takes
the nodes that it gets into what it composes, and to read a pickle takes a quarter of the time of a deep copy.
"""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from dual_lora import shipped
from dual_lora.config import recipes
from dual_lora.config.choices import CONFIGS

_GROUP = "recipe/"
_made: dict[str, bytes] = {}  # the config `settings`, which no file holds, pickled


class ShippedSource(ConfigSource):
    """`configs/`, its tables of recipes as configs of the group `recipe`."""

    @staticmethod
    def scheme() -> str:
        return "shipped"

    def available(self) -> bool:
        return recipes.RECIPES.is_dir()

    def is_config(self, config_path: str) -> bool:
        if config_path.startswith(_GROUP):
            return self._recipe(config_path) is not None
        return config_path.removesuffix(".yaml") == "settings" or self._file(config_path).is_file()

    def is_group(self, config_path: str) -> bool:
        return False  # Hydra lists the folder itself; no recipe is chosen by a person: model, task and method choose it

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        header: dict[str, Any]
        if config_path.startswith(_GROUP):
            recipe = self._recipe(config_path)
            assert recipe is not None
            config: Any = OmegaConf.create(recipe.node())
            header = {"package": "_global_"}
        elif config_path.removesuffix(".yaml") == "settings":
            config, header = pickle.loads(_made["settings"]), {"package": None}
        else:
            read, header = _read(self._file(config_path))
            config = pickle.loads(read)
            if config_path.removesuffix(".yaml") == "config":
                config.results = str(shipped.results())
        return ConfigResult(self.provider, self.full_path(), config, dict(header))

    def _recipe(self, config_path: str) -> recipes.Recipe | None:
        return recipes.find(config_path.removeprefix(_GROUP).removesuffix(".yaml"))

    def _file(self, config_path: str) -> Path:
        return CONFIGS / self._normalize_file_name(config_path)


@functools.cache
def _read(path: Path) -> tuple[bytes, dict[str, str | None]]:
    """Return a file's config, pickled, and the words of its header, such as its package."""
    return pickle.dumps(OmegaConf.load(path)), ConfigSource._get_header_dict(path.read_text(encoding="utf-8"))


class ShippedSearchPath(SearchPathPlugin):
    """Asks the source first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.prepend("dual_lora", "shipped://")


def register(settings: dict[str, Any]) -> None:
    """Tell Hydra of the source, and the source of the config `settings`; more than once does no harm."""
    _made["settings"] = pickle.dumps(OmegaConf.create(settings))
    for plugin in (ShippedSource, ShippedSearchPath):
        Plugins.instance().register(plugin)
