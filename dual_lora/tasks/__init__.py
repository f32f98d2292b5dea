"""The tasks: `load(config)` builds the one that a run names; `dual_lora/tasks/base.py` says what a task is.

A new task is one module with `build(config: RunConfig) -> Task`, here or of your own, and one YAML in `configs/task/`
that names it (docs/own_task.md).
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec

from dual_lora.config import ConfigError, RunConfig
from dual_lora.tasks import unused
from dual_lora.tasks.base import Task

_BUILT: dict[tuple[object, ...], Task] = {}


def load(config: RunConfig) -> Task:
    """Return the task that `config.task.module` names. Data is read when it is first asked for.

    Runs of a sweep that differ in method, model or seed share the task, and so its data.
    """
    key = (config.task, config.protocol, config.data, config.init_from, config.model.family)
    if key not in _BUILT:
        name = module_name(config.task.module)
        try:
            build = importlib.import_module(name).build
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"task.module={config.task.module}: {name} cannot be used ({error}); it needs a function "
                "build(config), and PYTHONPATH the folder of a module of yours (docs/own_task.md)"
            ) from None
        task = build(config)
        unused.refuse(config, task.unused)
        _BUILT[key] = task
    return _BUILT[key]


def module_name(module: str) -> str:
    """Return what Python imports for a task's module: one of this folder, or one of the user's."""
    inside = f"{__name__}.{module}"
    return inside if "." not in module and find_spec(inside) else module
