"""Which run this is: everything that can change a number, and its hash. Launcher, GPU count, paths and logs cannot."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from dual_lora.config import ConfigError, RunConfig
from dual_lora.records import digest, redaction, run_id

_PARTS = ("model", "task", "method", "recipe", "protocol", "profile")
_NOT_IDENTITY = {
    # Metrics are computed from the kept predictions, at any time and as often as wanted (`run.py rescore`).
    "task": ("metrics",),
    "model": ("path", "dimensions", "dtype"),  # the weights' fingerprint and the resolved dtype replace them
    "method": ("contract", "parameters"),
    "recipe": ("sources", "learning_rates", "trials", "validation_every_steps"),  # the protocol's is what acts
    "profile": ("base_row", "samples"),
}
# Settings that are younger than the first records, with the value that these had: a run that leaves one so has the name
# that it would have had before.
_YOUNGER: dict[str, Any] = {
    "model.dropout": None,
    "protocol.base": None,
    "protocol.decoding.early_stopping": False,
    "recipe.head_learning_rate": None,
}


def protocol_hash(config: RunConfig) -> str:
    """Return the hash that decides which numbers of one family of models may be in one block of a table."""
    return digest(_section(config, "protocol"), 12)


def _section(config: RunConfig, group: str) -> dict[str, Any]:
    """Return the settings of a group that can change a number; of the protocol's bases that of the model's family."""
    values = dataclasses.asdict(getattr(config, group))
    if group == "protocol":
        values["base"] = values["base"].get(config.model.family)
        if config.protocol.validation_part == "all":
            for name in ("validation_part", "selection_examples", "report_examples"):  # without effect
                del values[name]
    for path, before in _YOUNGER.items():
        owner, *parts, name = path.split(".")
        if owner == group:
            holder = functools.reduce(dict.__getitem__, parts, values)
            if holder[name] == before:
                del holder[name]
    return {name: value for name, value in values.items() if name not in _NOT_IDENTITY.get(group, ())}


def identity(
    config: RunConfig,
    *,
    dtype: str,
    model_fingerprint: dict[str, Any],
    data_fingerprint: dict[str, Any],
    init_from: str = "none",
) -> dict[str, Any]:
    """Return the identity of a run with its `run_id` (16 hexadecimal digits).

    `dtype` is the resolved one; `init_from` the hash of the weights a run starts from, or "none".
    """
    values: dict[str, Any] = {}
    for group in _PARTS:
        values[group] = _section(config, group)
    values["model"]["fingerprint"] = model_fingerprint
    values["data"] = {"source": config.data.source, "fingerprint": data_fingerprint}
    values.update(dtype=dtype, seed=config.seed, init_from=init_from)
    if config.init_head != "new":
        values["init_head"] = config.init_head
    values = _without_secrets(values)
    values["protocol"]["hash"] = protocol_hash(config)
    return {"run_id": run_id(values), **values}


def rebuilt(identity: Mapping[str, Any], data_dir: str | None) -> RunConfig:
    """Return the settings of a run as its record has them, and today's defaults for all that changes no number."""
    values: dict[str, Any] = {part: dict(identity[part]) for part in _PARTS}
    values["model"].pop("fingerprint")
    values["protocol"].pop("hash")
    if values["protocol"].get("base"):
        values["protocol"]["base"] = {values["model"]["family"]: values["protocol"]["base"]}
    sizes = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_key_value_heads", "vocab_size")
    values["model"]["dimensions"] = dict.fromkeys(sizes, 1)  # the fingerprint is of the weights
    values["method"] |= values["method"].pop("settings")
    values |= {"launch": {"name": "local"}, "data": {"source": identity["data"]["source"], "dir": data_dir}}
    return RunConfig.from_dict({**values, "seed": identity["seed"]})


def _without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    """Hide a secret in a label. One in a setting that names the run cannot be hidden there: raises `ConfigError`."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    hidden = redaction.hide_all(plain)
    for group, held in plain.items():
        if not isinstance(held, dict):
            continue
        if "label" in held:
            held["label"] = hidden[group]["label"]
        for name, value in held.items():
            if value != hidden[group][name]:
                raise ConfigError(
                    f"{group}.{name} holds a token or a key (by its form, or because an environment variable named "
                    "like one holds it), and every record of the run would show it; take it out"
                )
    return plain
