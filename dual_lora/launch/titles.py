"""The line that says which run this is, in every message about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dual_lora.config import RunConfig
from dual_lora.config.choices import flat

_CHOICES = ("model", "task", "method", "protocol", "profile")
_TEXTS = ("name", "label", "sources", "learning_rates", "trials", "contract", "parameters")  # that go with a choice
_varied: tuple[str, ...] = ()  # settings that the sweep of this command varies, besides those in every title


def distinguish(configs: Sequence[RunConfig]) -> None:
    """Let `title` say of each of these runs what makes it another than its like: a learning rate, a rank."""
    global _varied
    like: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for config in configs:
        like.setdefault(tuple(getattr(config, name).name for name in _CHOICES), []).append(_settings(config))
    differing = (
        name for group in like.values() for name in group[0] if len({repr(values.get(name)) for values in group}) > 1
    )
    _varied = tuple(dict.fromkeys(differing))


def title(config: RunConfig) -> str:
    """Return one line that says which run this is."""
    words = [f"{name}={getattr(config, name).name}" for name in _CHOICES]
    settings = _settings(config)
    words += [f"{name}={settings[name]}" for name in _varied if name in settings]
    return f"{' '.join(words)} seed={config.seed}"


def _settings(config: RunConfig) -> dict[str, Any]:
    values = config.to_dict()
    values["method"] |= values["method"].pop("settings")
    parts = {name: values[name] for name in (*_CHOICES, "recipe", "data", "init_from", "kernel", "diagnostics")}
    for part in (*_CHOICES, "recipe"):
        parts[part] = {name: value for name, value in parts[part].items() if name not in _TEXTS}
    return {name: value for name, value in flat(parts).items() if value != {}}
