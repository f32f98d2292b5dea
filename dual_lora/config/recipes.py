"""Recipes as tables: `configs/recipe/MODEL.FAMILY.yaml` has the numbers of a model on a family of tasks.

Every value is next to its source, `setting: [value, "source"]`; docs/recipes.md explains the sections and columns.
A table gives one recipe MODEL/TASK/METHOD for each of its tasks and methods. The tables `default.FAMILY.yaml` give one
default/TASK for each task. Reading checks a table: what it does not understand is an error that names file and key.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dual_lora.config import ConfigError, ModelConfig, RecipeConfig, legal_values
from dual_lora.config.choices import CONFIGS, Loader, flat, method_values, options

RECIPES = CONFIGS / "recipe"
DEFAULT = "default"
OTHER = "other"  # all tasks or methods that a row does not name
_DERIVED = ("name", "sources", "learning_rates")
_SETTINGS = [field.name for field in dataclasses.fields(RecipeConfig) if field.name not in _DERIVED]
_MODEL_SETTINGS = [f"model.{field.name}" for field in dataclasses.fields(ModelConfig)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The numbers of one combination: dotted setting (`epochs`, `method.r`) -> value, and -> source."""

    name: str
    values: Mapping[str, Any]
    sources: Mapping[str, str]
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)  # learning rate by rank (r16) or by method

    def node(self) -> dict[str, Any]:
        """Return what is merged into the composed settings of a run."""
        node: dict[str, Any] = {"recipe": {"name": self.name, "sources": dict(self.sources)}}
        for setting, value in self.values.items():
            group = node
            *path, last = setting.split(".") if "." in setting else ("recipe", setting)
            for part in path:
                group = group.setdefault(part, {})
            group[last] = value
        if self.rates:
            key, others = "r${method.r}", self.values.get("learning_rate")
            if OTHER in self.rates:
                key, others = "${method.name}", "${recipe.learning_rates.other}"
            rate = f"${{oc.select:recipe.learning_rates.{key},{others}}}"
            node["recipe"] |= {"learning_rates": dict(self.rates), "learning_rate": rate}
        return node


def find(name: str, folder: Path = RECIPES) -> Recipe | None:
    """Return the recipe MODEL/TASK/METHOD or default/TASK, or None if no table has it.

    Reads the tables of that model alone. Raises `ConfigError` for a table that cannot be used.
    """
    model = re.escape(name.partition("/")[0])
    for path in sorted(folder.glob("*.yaml")):
        if re.match(rf"{model}\.", path.name) and name in _recipes(path):
            return _recipes(path)[name]
    return None


def names(folder: Path = RECIPES) -> list[str]:
    """Return the names of all recipes, those of the defaults too. Raises `ConfigError`."""
    return sorted(name for path in folder.glob("*.yaml") for name in _recipes(path))


@functools.cache
def _recipes(path: Path) -> dict[str, Recipe]:
    recipes = _Table(path).recipes()
    return {recipe.name: recipe for recipe in recipes}


class _Table:
    """One file, read and checked, over the file of the model that it is like, if it is like one."""

    tasks: dict[str, str]  # short name -> name

    def __init__(self, path: Path, is_base: bool = False) -> None:
        self.file = f"configs/recipe/{path.name}"
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.file}: {error}") from None
        self.model, _, family = path.stem.partition(".")
        self.is_default = self.model == DEFAULT
        self._known("", self.model, [DEFAULT, *options("model")], "model")
        parts = ["tasks", "sources", "shared", *([] if self.is_default else ["like", "methods"])]
        sections = self._mapping("", content, parts)
        self.texts = self._mapping("sources", sections.get("sources"))
        self.shared = self._mapping("shared", sections.get("shared"))
        self.methods = self._mapping("methods", sections.get("methods"), options("method"), "method")
        if "like" in sections:
            if is_base:
                raise ConfigError(
                    f"{self.file}: like: another table is like this one; this one has to have its own rows"
                )
            base = self._other_table(path, str(sections["like"]), family)
            sections = {"tasks": list(base.tasks)} | sections
            self.texts, self.shared = base.texts | self.texts, base.shared | self.shared
            self.methods = base.methods | {name: base.rows(name) | self.rows(name) for name in self.methods}
            self.file += f" (like {base.model})"
        legal = {name.removeprefix(f"{family}/"): name for name in options("task")}
        if not isinstance(sections.get("tasks"), list):
            raise ConfigError(f"{self.file}: needs `tasks: [TASK, ...]`. Legal: {', '.join(legal)}")
        self.tasks = {short: legal[self._known("tasks", short, legal, "task")] for short in sections["tasks"]}

    def _other_table(self, path: Path, model: str, family: str) -> _Table:
        others = sorted(other.stem.partition(".")[0] for other in path.parent.glob(f"*.{family}.yaml") if other != path)
        legal = [name for name in others if name != DEFAULT]
        return _Table(path.with_name(f"{self._known('like', model, legal, 'model with a table')}.{family}.yaml"), True)

    def rows(self, method: str) -> dict[str, Any]:
        """Return a method's rows, none for a method that is not in the table."""
        return self._mapping(f"methods.{method}", self.methods.get(method))

    def recipes(self) -> Iterable[Recipe]:
        if self.is_default:
            for task, name in self.tasks.items():
                yield self._recipe(f"{DEFAULT}/{name}", task, {"shared": self.shared}, [])
        for method in self.methods:
            where = f"methods.{method}"
            rows = self._with_those_it_is_like(method)
            tasks, is_shared = rows.pop("tasks", list(self.tasks)), rows.pop("shared", True)
            if not isinstance(is_shared, bool):
                raise ConfigError(f"{self.file}: {where}.shared: {is_shared!r} is not true or false")
            sections = {**({"shared": self.shared} if is_shared else {}), where: rows}
            settings = [f"method.{name}" for name in _settings_of(method)]
            for task in tasks:
                self._known(f"{where}.tasks", task, self.tasks, "task")
                yield self._recipe(f"{self.model}/{self.tasks[task]}/{method}", task, sections, settings)

    def _with_those_it_is_like(self, method: str) -> dict[str, Any]:
        """Return a method's rows over those of the method that it is like, if it is like one."""
        rows = dict(self.rows(method))
        if "like" not in rows:
            return rows
        where = f"methods.{method}.like"
        other = self._known(where, rows.pop("like"), self.methods, "method")
        if "like" in self.rows(other):
            raise ConfigError(f"{self.file}: {where}: {other} is itself like another; name that one")
        return self.rows(other) | rows

    def _recipe(self, name: str, task: str, sections: Mapping[str, Any], settings: list[str]) -> Recipe:
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for section, rows in sections.items():
            for setting, row in rows.items():
                where = f"{section}.{setting}"
                self._known(where, setting, [*_SETTINGS, *_MODEL_SETTINGS, *settings], "setting")
                for value, source in self._cells(where, row, task):
                    values[setting], sources[setting] = value, source
        rate = values.get("learning_rate")
        if rate is None:
            raise ConfigError(f"{self.file}: {name} has no learning_rate; give it one with its source")
        if not isinstance(rate, dict):
            return Recipe(name, values, sources)
        own = OTHER if self.is_default else f"r{values.get('method.r')}"
        if own not in rate:
            raise ConfigError(f"{self.file}: learning_rate of {name} has no {own!r}. It has: {', '.join(rate)}")
        return Recipe(name, values | {"learning_rate": rate[own]}, sources, rate)

    def _cells(self, where: str, row: Any, task: str) -> Iterable[tuple[Any, str]]:
        """Yield a task's value and source; nothing where the row has none for this task."""
        for cell in self._of_task(where, row, task):
            if not (isinstance(cell, list) and len(cell) == 2 and isinstance(cell[1], str) and cell[1].strip()):
                raise ConfigError(
                    f'{self.file}: {where}: {cell!r} is not [value, "source"]: a value, and its source in quotes'
                )
            given, source = cell
            is_table = isinstance(given, dict) and self._is_by_rank_or_method(where, given)
            for value in [given] if is_table else self._of_task(where, given, task):
                if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", value, re.IGNORECASE):
                    raise ConfigError(f"{self.file}: {where}: YAML reads {value} as a string; write 2.0e-4, not 2e-4")
                yield value, self._source(where, source, task)

    def _is_by_rank_or_method(self, where: str, values: Mapping[str, Any]) -> bool:
        if not where.endswith(".learning_rate"):
            return False
        if self.is_default:
            for method in values:
                self._known(where, method, [OTHER, *options("method")], "method")
        return self.is_default or all(re.fullmatch("r[0-9]+", str(key)) for key in values)

    def _of_task(self, where: str, row: Any, task: str) -> list[Any]:
        """Return what a row has for a task, in a list: itself, or of `{task: entry, other: entry}` the one, or none."""
        if not isinstance(row, dict):
            return [row]
        for key in row:
            self._known(where, key, [*self.tasks, OTHER], "task")
        return [row[key] for key in (task, OTHER) if key in row][:1]

    def _source(self, where: str, source: str, task: str) -> str:
        """Fill in `{task}` and the texts of the section `sources`."""
        filled = {"task": task}
        for name, text in self.texts.items():
            filled[name] = "".join(self._of_task(f"sources.{name}", text, task)).replace("{task}", task)
        try:
            return source.format(**filled)
        except (KeyError, IndexError, ValueError) as error:
            legal = ", ".join(f"{{{name}}}" for name in filled)
            raise ConfigError(
                f"{self.file}: {where}: no source text for {error} in {source!r}. Legal: {legal}"
            ) from None

    def _known(self, where: str, word: str, legal: Iterable[str], what: str) -> str:
        if word not in legal:
            key = f" {where}:" if where else ""
            raise ConfigError(f"{self.file}:{key} unknown {what} {word!r}{legal_values(word, legal)}")
        return word

    def _mapping(
        self, where: str, value: Any, legal: Iterable[str] | None = None, what: str = "section"
    ) -> dict[str, Any]:
        if not isinstance(value, dict | None):
            raise ConfigError(f"{self.file}: {where or 'the file'}: needs `key: value` lines, got {value!r}")
        for key in value or {}:
            if legal is not None:
                self._known(where, key, legal, what)
        return value or {}


@functools.cache
def _settings_of(method: str) -> list[str]:
    """Return the dotted names of a method's settings, as its file and those that it builds on state them."""
    return list(flat(method_values(method)))
