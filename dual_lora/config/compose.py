"""Turning a command line into checked `RunConfig`s, with Hydra. Nothing heavy is imported here.

A sweep (`-m`) is composed completely and every run is checked before the first one starts: a misspelt value in the last
run is found at once and not after a night.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from dual_lora import shipped
from dual_lora.config import ConfigError, RunConfig, legal_values
from dual_lora.config.choices import CONFIGS, options, sweep_values
from dual_lora.config.usage import GROUPS, help_text
from dual_lora.config.words import SEARCHPATH, for_hydra, of_no_method, searchpath, with_added_keys


@functools.cache
def _tell_hydra() -> None:
    from dual_lora.config import config_source

    config_source.register(_every_setting())


@contextlib.contextmanager
def _initialized() -> Iterator[None]:
    """Let Hydra compose from `configs/`, without the settings of its own that only `hydra.main` needs."""
    import hydra
    from hydra.core.config_store import ConfigStore

    own = ConfigStore.instance().repo["hydra"]
    full = own["config.yaml"]
    own["config.yaml"] = dataclasses.replace(full, node=_own_settings())
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            yield
    finally:
        own["config.yaml"] = full


@functools.cache
def _own_settings() -> Any:
    """Return what Hydra registers as `hydra/config`, without the groups that it would read."""
    from hydra.conf import HydraConf
    from omegaconf import OmegaConf

    # configs/config.yaml overrides them
    return OmegaConf.structured(HydraConf(defaults=[{"job_logging": "none"}, {"hydra_logging": "none"}]))


def _every_setting() -> dict[str, Any]:
    """Return every setting's default: each can be given on the command line, whether a YAML has it or not."""
    found: dict[str, Any] = {}
    for group, kind in typing.get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(kind):
            found[group] = _defaults(kind)
    found["method"].pop("settings")  # a method's PEFT settings are at the same level as its own
    return found


def _defaults(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            values[field.name] = list(field.default) if isinstance(field.default, tuple) else field.default
        elif dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = _defaults(hints[field.name])
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
    return values


def compose(arguments: list[str]) -> list[RunConfig]:
    """Return one checked config for each run of the command line (several with `-m`).

    Raises `ConfigError`. For `--cfg`, `--info` and the like Hydra prints and the list is empty.
    """
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(help_text())
        return []
    # Hydra's own error output hides the legal values behind a stack-trace hint; let it raise, and explain the error.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = with_added_keys(for_hydra(arguments))
    _tell_hydra()
    for word in arguments:
        group, _, values = word.partition("=")
        if group in GROUPS and not {"null", ""}.isdisjoint(values.split(",")):
            raise ConfigError(f"{word}: choose one; legal: {', '.join(options(group))}")
    with _explained():
        places = searchpath(arguments)
    flags = {word for word in arguments if word.startswith("-")}
    if not flags <= {"-m", "--multirun"} or any(re.match(r"hydra(?!\.searchpath=)", word) for word in arguments):
        configs = _composed_by_hydra(arguments)
    elif flags or any(word.startswith("experiment=") for word in arguments):
        configs = _sweep([word for word in arguments if word not in flags])
    else:
        configs = [_single(arguments)]
    return [dataclasses.replace(config, searchpath=places) for config in configs] if places else configs


def _composed_by_hydra(arguments: list[str]) -> list[RunConfig]:
    import hydra
    from omegaconf import DictConfig

    configs: list[RunConfig] = []

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    def collect(composed: DictConfig) -> None:
        configs.append(RunConfig.from_dict(_plain(composed)))

    previous = sys.argv
    sys.argv = [previous[0], *arguments]
    try:
        with _explained():
            collect()
    finally:
        sys.argv = previous
    return configs


def compose_one(arguments: list[str]) -> RunConfig:
    """Return the config of a command line for one run. Raises `ConfigError`, also for a sweep."""
    cells = compose(arguments)
    if len(cells) != 1:
        raise ConfigError("one model at a time: give one value per setting and no -m")
    return cells[0]


def _plain(composed: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    if "name" not in values["recipe"]:
        raise ConfigError(
            f"task={values['task']['name']} has no default recipe: it is in no table configs/recipe/default.*.yaml, "
            "and its own file has no section `recipe` (docs/own_task.md)"
        )
    return {str(key): value for key, value in values.items()}


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn Hydra's errors into a `ConfigError` that says what is wrong and what is legal."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from None


def _single(words: list[str]) -> RunConfig:
    """Compose one run once; `hydra.main` composes it twice, the first time to learn whether it is a sweep."""
    with _initialized():
        return RunConfig.from_dict(_composed(tuple(words)))


def _sweep(words: list[str]) -> list[RunConfig]:
    """Compose the runs of a sweep, each once and on all cores.

    Hydra's basic sweeper composes every run twice, one after the other, at 0.15 s and more each: a study of 245 runs
    would wait for minutes. Runs that differ only in their seed are composed once: no file of `configs/` refers to the
    seed.
    """
    with _initialized():
        with _explained():
            jobs = _jobs(words)
        # All but the seed -> one of its seeds, so that Hydra refuses a value that is not a seed.
        composed = {_without_seed(job): job for job in reversed(jobs)}
        values = dict(zip(composed, _in_parallel(list(composed.values())), strict=True))
    configs = []
    for job in jobs:
        seed = next((word.removeprefix("seed=") for word in job if word.startswith("seed=")), None)
        own = {"seed": int(seed) if seed.isdigit() else seed} if seed is not None else {}
        configs.append(RunConfig.from_dict(values[_without_seed(job)] | own))
    return configs


def _without_seed(job: tuple[str, ...]) -> tuple[str, ...]:
    if any(word.startswith(SEARCHPATH) for word in job):  # a file of a user's own may refer to it
        return job
    return tuple(word for word in job if not word.startswith("seed="))


def _jobs(words: list[str]) -> list[tuple[str, ...]]:
    """Return the overrides of each run: the experiment's choices, if there is one, and over them the given ones.

    The last setting changes first, as in Hydra's basic sweeper.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    chosen = [word for word in words if word.startswith("experiment=")]
    params: Mapping[str, Any] = {}
    if any("," in word for word in chosen) or len(chosen) > 1:
        raise ConfigError(f"{' '.join(chosen)}: a sweep is one experiment; give one command for each")
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    if chosen:
        named = [word for word in words if word.startswith(("experiment=", SEARCHPATH))]
        params = hydra.compose("config", overrides=named, return_hydra_config=True).hydra.sweeper.params or {}
        given = {one.key_or_group for one in parser.parse_overrides(words)}
        # One that is given anew is not resolved: it may name an environment variable that this machine lacks.
        params = {key: "null" if key in given else params[key] for key in params}
    chosen = for_hydra([f"{key}={value}" for key, value in params.items()])
    overrides = parser.parse_overrides([*chosen, *words])
    choices = {one.get_key_element(): [f"{one.get_key_element()}={x}" for x in sweep_values(one)] for one in overrides}
    return list(itertools.product(*choices.values()))


def _in_parallel(jobs: list[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Compose each of these overrides. Forked while this process is small: a loaded torch has threads of its own."""
    processes = min(len(jobs) // 4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if processes < 2 or "torch" in sys.modules:
        return [_composed(job) for job in jobs]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return pool.map(_composed, jobs, chunksize=1)


def _composed(job: tuple[str, ...]) -> dict[str, Any]:
    import hydra

    with _explained():
        return _plain(hydra.compose("config", overrides=list(job)))


def _explain(error: BaseException) -> str:
    """Say in one message which value is wrong, which are legal and which is nearest."""
    from hydra.errors import MissingConfigException

    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wrong = error.missing_cfg_file.removeprefix("/").partition("/")
        if group == "protocol":
            family, _, wrong = wrong.rpartition("/")
            legal = [path.stem for path in sorted((CONFIGS / "protocol" / family).glob("*.yaml"))]
            task = f" for task={family}" if family else ""
            return f"protocol={wrong} does not exist{task}{legal_values(wrong, legal)}"
        legal = options(group)
        own = f" (one of your own: docs/own_{group}.md)" if group in ("method", "task") else ""
        return f"unknown {group} {wrong!r}{legal_values(wrong, legal)}{own}"
    text = str(error)
    several = re.match(r"Ambiguous value for argument '(.*)'", text)
    if several:
        return f"{several[1]}: several values are a sweep; give -m, or KEY=[A,B] for one value that is a list"
    absent = re.search(r"Environment variable '(\w+)' not found", text)
    if absent:
        hint = f"; export {absent[1]}=VALUE"
        if absent[1] == "DUAL_LORA_DATA":
            hint = (
                f": the folder of data. `{shipped.program()} data out=data` makes it and says what to export; or give "
                "data.source=hub data.dir=null (docs/data.md)"
            )
        return f"a setting needs the environment variable {absent[1]}, which is unset{hint}"
    key = getattr(cause, "key", None)
    parent: Any = getattr(cause, "parent_node", None)
    if key is not None and hasattr(parent, "keys"):
        legal = sorted(str(name) for name in parent)
        full = getattr(cause, "full_key", None) or key
        if full == f"method.{key}":
            return f"unknown setting {full!r}{of_no_method(str(key), legal, parent.get('config_class'))}"
        return f"unknown setting {full!r}{legal_values(key, legal)}"
    if "Could not find" in text and "group" in text.lower():
        return f"{text.splitlines()[0]} Groups: {', '.join(GROUPS)}"
    return text if cause is None else f"{text}: {cause}".splitlines()[0]
