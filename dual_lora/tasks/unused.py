"""Settings that a task makes no use of: another value than the one it states is refused, not silently ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dual_lora.config import ConfigError, DecodingConfig, RunConfig

# Setting -> the values that a run of such a task may have, all without effect; `task.subsets` depends on the data.
UNUSED_BY_TEXT: Mapping[str, Sequence[Any]] = {
    "task.target": ("label",),
    "protocol.prompt": ("lora", "default"),
    "protocol.drop_repeated_examples": (False,),
    "protocol.validation_examples": (None,),
    "protocol.validation_fraction": (None,),
    "protocol.report_examples": (None,),
}
UNUSED_BY_CLASSIFICATION: Mapping[str, Sequence[Any]] = {
    "task.target": ("label",),
    "task.metrics": ((),),
    "task.scorings": ((), ("classify",)),
    "protocol.scorings": (("classify",),),
    "protocol.prompt": ("default",),
    "protocol.loss_on": ("answer",),
    "protocol.append_end": (True,),
    "protocol.reference_form": (None,),
    "protocol.drop_repeated_examples": (False,),
    "protocol.validation_examples": (None,),
    "protocol.selection_examples": (None,),
    "protocol.report_examples": (None,),
    "protocol.decoding": (DecodingConfig(),),
}
UNUSED_BY_CHOICE: Mapping[str, Sequence[Any]] = {
    "protocol.reference_form": (None,),
    "protocol.validation_fraction": (None,),
}


def refuse(config: RunConfig, unused: Mapping[str, Sequence[Any]]) -> None:
    """Raise `ConfigError` for a setting without effect on the run's task that has another value than those given."""
    for name, legal in unused.items():
        part, _, key = name.partition(".")
        held = getattr(getattr(config, part), key)
        if held not in legal:
            raise ConfigError(f"{_given(config.task.name, name, held, legal)}; leave it out")


def _given(task: str, name: str, held: Any, legal: Sequence[Any]) -> str:
    if isinstance(held, DecodingConfig):
        names = [field.name for field in dataclasses.fields(held)]
        other = [key for key in names if getattr(held, key) != getattr(legal[0], key)]
        return f"{' '.join(f'{name}.{key}={_word(getattr(held, key))}' for key in other)}: task={task} decodes nothing"
    return f"{name}={_word(held)} has no effect on task={task}, which has only {' or '.join(map(_word, legal))}"


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(value)}]"
    return "null" if value is None else str(value)
