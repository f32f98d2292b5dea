"""The tasks: `load(config)` builds the one that a run names; `dual_lora/tasks/base.py` says what a task is.

A new task is one module here with `build(config: RunConfig) -> Task`, and one YAML in `configs/task/` that names it.
"""

from __future__ import annotations

import importlib

from dual_lora.config import RunConfig
from dual_lora.tasks.base import Task

_BUILT: dict[tuple[object, ...], Task] = {}


def load(config: RunConfig) -> Task:
    """Return the task that `config.task.module` names. Data is read when it is first asked for.

    Runs of a sweep that differ in method, model or seed share the task, and so its data.
    """
    key = (config.task, config.protocol, config.data, config.init_from, config.model.family)
    if key not in _BUILT:
        _BUILT[key] = importlib.import_module(f"dual_lora.tasks.{config.task.module}").build(config)
    return _BUILT[key]
