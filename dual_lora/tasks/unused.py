"""Settings that a task makes no use of: another value than the one it states is refused, not silently ignored."""

from __future__ import annotations

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
            shown = " or ".join(map(_word, legal))
            raise ConfigError(
                f"{name}={_word(held)} has no effect on task={config.task.name}, which has only {shown}; leave it out"
            )


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(value)}]"
    return "the default" if isinstance(value, DecodingConfig) else "null" if value is None else str(value)
