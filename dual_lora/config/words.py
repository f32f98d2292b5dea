"""The words of a command line as Hydra's grammar reads them: what a shell passed on is taken as it is.

Hydra reads `(`, `#`, a quote, a backslash or a letter outside ASCII as grammar. Nobody should have to quote a folder's
name a second time, within the quotes of the shell.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from dual_lora.config.choices import method_values
from dual_lora.config.errors import ConfigError, closest, legal_values
from dual_lora.config.schema import MethodConfig

# Fields of a PEFT config that come from the model and the task, so a method may not set them.
SET_BY_THE_SUITE = (
    "task_type",
    "peft_type",
    "inference_mode",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "auto_mapping",
)
PATHS = ("data.dir", "model.path", "results", "init_from")  # settings whose whole value is a name on this machine
SEARCHPATH = "hydra.searchpath="  # where methods, tasks and recipes of a user's own are
_QUOTES = ("'", '"')


def for_hydra(words: Sequence[str]) -> list[str]:
    """Return the words with those values quoted that Hydra's grammar would read as something else.

    A list, a dictionary and a quoted text are left as they are. In a sweep (-m) a comma separates values of a path too.

    Raises `ConfigError` for flags that do not go together.
    """
    _check_flags({word.partition("=")[0] for word in words if word.startswith("-")})
    sweep = bool({"-m", "--multirun"} & set(words))
    return [_quoted(word, sweep=sweep) for word in words]


def searchpath(words: Sequence[str]) -> str | None:
    """Return the search path that the words give, as it is given from any folder: relative folders made absolute."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [word for word in words if word.startswith(SEARCHPATH)]
    if not given:
        return None
    places = OverridesParser.create().parse_override(given[-1]).value()
    folders = [str(place) for place in (places if isinstance(places, list) else [places])]
    return f"[{','.join(_absolute(folder) for folder in folders)}]"


def _absolute(folder: str) -> str:
    scheme, _, path = folder.rpartition("://")
    return f"file://{os.path.abspath(path)}" if scheme in ("", "file") else folder


def _check_flags(given: set[str]) -> None:
    """Refuse flags that Hydra takes one at a time, which it says in a traceback."""
    shows = sorted(given & {"--cfg", "-c", "--info", "-i"})
    starts = sorted(given & {"-m", "--multirun", "-r", "--run"})
    if shows and starts:
        raise ConfigError(
            f"{shows[0]} shows one run's settings and starts none: give it without {starts[0]}, with one value for "
            "each setting; -m plan=true lists the runs of a sweep"
        )
    if "--resolve" in given and not given & {"--cfg", "-c"}:
        raise ConfigError("--resolve fills in references of what --cfg job shows: give both, or neither")


def _quoted(word: str, *, sweep: bool) -> str:
    key, given, value = word.partition("=")
    if not given or not value or key.startswith(("-", "~")) or value.startswith(_QUOTES):
        return word
    if key.lstrip("+") in PATHS and value != "null":
        return f"{key}={','.join(map(_text, value.split(',') if sweep else [value]))}"
    if _is_grammar(word):
        return word
    if value.startswith(("[", "{")):
        raise ConfigError(
            f"{word}: no list [a,b] and no dictionary {{a: 1}}; a text that begins so is quoted once more: "
            f"""{key}='"{value}"'"""
        )
    return f"{key}={_text(value)}"


def _is_grammar(word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _text(value: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(value, Quote.single).with_quotes()


def with_added_keys(words: Sequence[str]) -> list[str]:
    """Let words add keys that no YAML has: a field of the method's PEFT config, an option of sbatch.

    PEFT is imported only for a field that no YAML has; one that no class has is left for Hydra to refuse.
    """
    named = [word.partition("=")[2] for word in words if word.startswith("method=")]
    methods = named[-1].split(",") if named else ["dual_lora"]
    return [f"++{word}" if _is_sbatch_option(word) or _is_peft_field(word, methods) else word for word in words]


def _is_sbatch_option(word: str) -> bool:
    """Whether a word is `launch.sbatch={exclude: node7}` or `launch.sbatch.exclude=node7`."""
    key = word.partition("=")[0]
    return key == "launch.sbatch" or key.startswith("launch.sbatch.")


def _is_peft_field(word: str, methods: Sequence[str]) -> bool:
    group, _, name = word.partition("=")[0].partition(".")
    if group != "method" or not name.isidentifier() or name in (field.name for field in fields(MethodConfig)):
        return False
    try:
        without = [values for values in map(method_values, methods) if name not in values]
    except FileNotFoundError:  # a method of the user's own
        return False
    return bool(without) and all(name in _peft_fields(values.get("config_class")) for values in without)


def of_no_method(word: str, suite: Iterable[str], config_class: str | None) -> str:
    """Return the end of an error about a method's setting that is none: the nearest name and all legal ones.

    suite: the settings that the suite has for a method; those of its PEFT config are legal too.
    """
    own = _peft_fields(config_class) - set(SET_BY_THE_SUITE)
    of_lora: Mapping[str, str] = getattr(_peft_class(config_class), "of_lora", {})
    legal = sorted({*suite, *own})
    meant = closest(word, [*legal, *of_lora, *(["rank"] if "r" in own else [])])
    if meant is not None and meant in of_lora:
        return f"; LoRA's {meant} is {of_lora[meant]} here. Legal: {', '.join(legal)}"
    return legal_values("r" if meant == "rank" else word, legal)


@cache
def _peft_fields(path: str | None) -> frozenset[str]:
    found = _peft_class(path)
    return frozenset() if found is None else frozenset(field.name for field in fields(found))


def _peft_class(path: str | None) -> Any:
    """Return the class of that name; None if there is none, which is refused where the method is checked."""
    module, _, name = (path or "").rpartition(".")
    try:
        return getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
