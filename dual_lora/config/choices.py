"""What can be chosen on a command line: the files of `configs/`, and the values of a sweep. Light to import."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dual_lora import shipped

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONFIGS = shipped.folder("configs")


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The fast loader, if PyYAML has it; a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key, _ in node.value:
            keys.append(self.construct_object(key))
            if keys.count(keys[-1]) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {keys[-1]!r}", key.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


def options(group: str) -> list[str]:
    """Return the legal values of a config group, nested ones as `glue/cola`."""
    folder = CONFIGS / group
    if not folder.is_dir():
        return []
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml"))]
    if group == "protocol":
        names = [name for name in names if "/" not in name]
    return [name for name in names if not Path(name).name.startswith("_")]


def method_values(name: str) -> dict[str, Any]:
    """Return the settings of a method's YAML, without Hydra: a `defaults` list may name methods that it builds on."""
    text = (CONFIGS / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    own = yaml.load(text, Loader=Loader)
    values: dict[str, Any] = {}
    for parent in own.pop("defaults", []):
        values |= {} if parent == "_self_" else method_values(parent)
    for key, value in own.items():
        nested = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = values[key] | value if nested else value
    return values


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> value of nested settings."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        found |= flat(value, name) if isinstance(value, Mapping) and value else {name: value}
    return found


def sweep_values(override: Override) -> tuple[str, ...]:
    """Return the values in one word of a command line, as strings: `seed=0,1` has two, `seed=0` one.

    Raises `HydraException` for a sweep whose values cannot be listed (an interval).
    """
    from hydra.errors import HydraException

    if not override.is_sweep_override():
        return (override.get_value_element_as_str(),)
    if not override.is_discrete_sweep():
        raise HydraException(f"{override.input_line}: a sweep has to list its values: {override.key_or_group}=A,B,C")
    return tuple(override.sweep_string_iterator())


@functools.cache
def values_of_word(word: str) -> tuple[str, ...]:
    """Return the values in one word, read once: the experiments repeat each other's. Raises `HydraException`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return sweep_values(OverridesParser.create().parse_override(word))
