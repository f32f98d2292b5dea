"""The weights a run starts from besides the pretrained ones: for MRPC, RTE and STS-B those of an MNLI run.

    start = resolve(config)          # None for init_from=none; start.sha256 enters the run's identity
    model = methods.apply(...)
    load(model, start, config.init_head)   # after the adapter is added

LoRA's published MRPC, RTE and STS-B rows start from the adapter of its best MNLI run (appendix D; `--lora_path` in the
scripts). The classes differ, so the output layer is new; whether the head's dense layer was MNLI's is not known (the
released files have its size): `init_head` is `new` or `dense`. `init_from` says explicitly:

    none      no warm start (the default); the record is labelled "no MNLI start"
    auto      the finished MNLI record of the same model, method, recipe, protocol and data with the best headline score
    RUN_ID    the record of that name
    PATH      a file of trained weights, a run's folder, or a PEFT adapter's folder
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dual_lora import records, shipped
from dual_lora.config import MNLI_STARTED, ConfigError, RunConfig
from dual_lora.config.words import SEARCHPATH

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)
_SOURCE_TASK = "glue/mnli"
# Adapters that mean nothing without frozen random tensors, which come from the run's seed and are not in the file.
_SEEDED_CONFIGS = ("peft.VeraConfig", "peft.RandLoraConfig")
_WITH_DENSE_LAYER = ("roberta", "bert", "deberta")  # RoBERTa's `classifier.dense`, the others' `pooler.dense`
_PEFT_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class WarmStart:
    """A file of weights to start from. `run_id` and `checkpoint` are None for a path."""

    path: Path
    sha256: str
    run_id: str | None = None
    checkpoint: str | None = None

    def origin(self) -> dict[str, str | None]:
        """Return what the record says about it (`sha256` is also in the identity)."""
        return {"sha256": self.sha256, "run_id": self.run_id, "checkpoint": self.checkpoint}


def resolve(config: RunConfig) -> WarmStart | None:
    """Return what `config.init_from` names, hashed; None for "none".

    Raises `ConfigError`: a task or protocol without a warm start, no such record or file, a record of another model,
    method or recipe, weights that are not on this machine. The message for "auto" has the command that makes them.
    """
    # A sweep over all of GLUE sets init_from=auto for every task; those published without a warm start have none.
    if config.init_from == "none" and config.init_head != "new":
        raise ConfigError(
            f"init_head={config.init_head} needs weights to come from; give init_from=auto, or init_head=new"
        )
    if config.init_from == "none" or (config.init_from == "auto" and config.task.name not in MNLI_STARTED):
        return None
    if config.init_head == "dense" and config.model.family not in _WITH_DENSE_LAYER:
        raise ConfigError(
            f"init_head=dense with model={config.model.name}: the head of a {config.model.family} model is one layer; "
            f"use init_head=new (families with a dense layer: {', '.join(_WITH_DENSE_LAYER)})"
        )
    _check_allowed(config)
    if config.init_from == "auto":
        return _best(config)
    known = records.read(records.record_path(config.results, config.init_from)) if _is_name(config.init_from) else None
    if known is not None:
        faults = _differences(config, known)
        if faults:
            raise ConfigError(f"init_from={config.init_from} cannot be used: {'; '.join(faults)}")
        return _start_of(config, known)
    path = Path(os.path.expanduser(config.init_from))
    if not path.exists():
        raise ConfigError(
            f"init_from={config.init_from}: neither a record in {Path(config.results) / 'records'} nor a file or "
            "folder; legal: none, auto, the id of a finished MNLI run, a path to its weights"
        )
    file = _weights_in(path)
    return WarmStart(file, records.file_sha256(file))


def _is_name(word: str) -> bool:
    return word == Path(word).name and word not in (".", "..")


def _check_allowed(config: RunConfig) -> None:
    if config.task.name not in MNLI_STARTED:
        raise ConfigError(
            f"init_from={config.init_from} with task={config.task.name}: only {', '.join(MNLI_STARTED)} start "
            "from an MNLI run; use init_from=none"
        )
    if not config.protocol.mnli_start_allowed:
        raise ConfigError(
            f"init_from={config.init_from} with protocol={config.protocol.name}: this protocol allows no start from "
            "MNLI; use init_from=none, or protocol=paper or strict"
        )
    if config.method.trains in ("nothing", "head"):
        raise ConfigError(
            f"init_from={config.init_from} with method={config.method.name}, which trains no weights that a warm "
            "start could provide (the head is always new); use init_from=none"
        )


def _best(config: RunConfig) -> WarmStart:
    finished = [known for known in _records(config) if known["identity"]["task"]["name"] == _SOURCE_TASK]
    fitting, near = [], []
    for known in finished:
        faults = _differences(config, known)
        if not faults:
            fitting.append(known)
        elif [known["identity"][part]["name"] for part in ("model", "method")] == [
            config.model.name,
            config.method.name,
        ]:
            near.append(f"{known['identity']['run_id']}: {'; '.join(faults)}")
    if not fitting:
        refused = f" MNLI records that do not fit: {' | '.join(near[:3])}." if near else ""
        raise ConfigError(
            f"init_from=auto: {Path(config.results) / 'records'} has no finished MNLI record of "
            f"model={config.model.name}, method={config.method.name}, this recipe and protocol.{refused} "
            f"Make one with\n  {command(config)}\n"
            "or train without it: init_from=none"
        )

    def value(known: dict[str, Any]) -> float:
        score = known["scores"]["headline"]["value"]
        return float("-inf") if score is None else score

    return _start_of(config, max(fitting, key=lambda known: (value(known), known["identity"]["run_id"])))


def command(config: RunConfig) -> str:
    """Return the command that makes the MNLI run whose weights this config would start from.

    It has this config's settings wherever those of its own choices are others.
    """
    from dual_lora.config.compose import compose_one

    words = [f"model={config.model.name}", f"task={_SOURCE_TASK}", f"method={config.method.name}"]
    choices = (("protocol", config.protocol.name, "paper"), ("profile", config.profile.name, "full"))
    words += [f"{group}={name}" for group, name, default in choices if name != default]
    source = [f"data.source={config.data.source}", f"data.dir={config.data.dir or 'null'}"]
    if config.searchpath:
        words.append(f"{SEARCHPATH}{config.searchpath}")
    base, wanted = compose_one([*words, *source]).to_dict(), config.to_dict()
    if config.data.source != "hub":
        words += source[: 1 + bool(config.data.dir)]
    for part in ("model", "method", "protocol", "profile", "launch", "seed", "results"):
        own, its = _settings(part, wanted[part]), _settings(part, base[part])
        words += [f"{name}={_word(value)}" for name, value in own.items() if value != its.get(name)]
    return shipped.typed(shipped.command_line(*words))


def _settings(part: str, held: Any) -> dict[str, Any]:
    """Return a section's settings under their names on a command line, without those that others decide."""
    if not isinstance(held, dict):
        return {part: held}
    flat = {name: value for name, value in held.items() if name not in ("settings", "per_device_batch", "contract")}
    return {f"{part}.{name}": value for name, value in {**flat, **held.get("settings", {})}.items()}


def _word(value: Any) -> str:
    """Return a value as it is given on a command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False).replace('"', "").replace(", ", ",")


def _records(config: RunConfig) -> list[dict[str, Any]]:
    held, refused = records.read_folder(Path(config.results) / "records")
    for text in refused:
        logger.warning("refused: %s", text)
    return [known for known in held if known["status"] == "finished"]


def _differences(config: RunConfig, known: dict[str, Any]) -> list[str]:
    """Return why the weights of a record do not fit this run; empty if they do."""
    from dual_lora import models

    identity = known["identity"]
    faults = []
    if known["status"] != "finished":
        faults.append(f"its status is {known['status']}")
    if identity["task"]["name"] != _SOURCE_TASK:
        faults.append(f"its task is {identity['task']['name']}, not {_SOURCE_TASK}")
    if identity["model"]["fingerprint"] != models.fingerprint(config.model):
        faults.append(f"its model is {identity['model']['name']} with other weights than model={config.model.name}")
    faults += _method_differences(config, identity["method"])
    recipe = config.recipe.name.replace(config.task.name, _SOURCE_TASK)
    for name, own, its in (
        ("recipe", recipe, identity["recipe"]["name"]),
        ("protocol", config.protocol.name, identity["protocol"]["name"]),
        ("profile", config.profile.name, identity["profile"]["name"]),
        ("data.source", config.data.source, identity["data"]["source"]),
    ):
        if own != its:
            faults.append(f"its {name} is {its}, this run needs {own}")
    if _needs_same_seed(config) and identity["seed"] != config.seed:
        faults.append(
            f"its seed is {identity['seed']}, and {config.method.name} has frozen weights drawn from the seed"
        )
    return faults


def _method_differences(config: RunConfig, its: dict[str, Any]) -> list[str]:
    """Return settings that differ; the optimizer and the warm-up of the update do not matter for trained weights."""
    own = json.loads(json.dumps(asdict(config.method)))
    faults = [
        f"its method.{name} is {its[name]!r}, this run's {own[name]!r}"
        for name in ("name", "config_class", "trains")
        if its[name] != own[name]
    ]
    for name in sorted(own["settings"].keys() | its["settings"].keys()):
        left, right = its["settings"].get(name), own["settings"].get(name)
        if left != right:
            faults.append(f"its method.{name} is {left!r}, this run's {right!r}")
    return faults


def _needs_same_seed(config: RunConfig) -> bool:
    settings = config.method.settings
    return config.method.config_class in _SEEDED_CONFIGS or bool(settings.get("subtract_start"))


def _start_of(config: RunConfig, known: dict[str, Any]) -> WarmStart:
    run_id, checkpoint = known["identity"]["run_id"], known["scores"]["headline"]["checkpoint"]
    folder = records.run_folder(config.results, run_id)
    file = records.weights_file(folder, checkpoint)
    if not file.is_file():
        raise ConfigError(
            f"the MNLI run {run_id} is recorded, but its weights are not here ({file}; run folders are not committed). "
            f"Copy that file, or move the record away and repeat the run:\n  {command(config)}"
        )
    return WarmStart(file, records.file_sha256(file), run_id, checkpoint)


def _weights_in(path: Path) -> Path:
    """Return the file of weights that a path refers to."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ConfigError(f"init_from={path}: weights are read from safetensors files only")
        return path
    legal = [_PEFT_FILE, "selected/best_dev.safetensors", "selected/best_heldout.safetensors", "last.safetensors"]
    found = [path / name for name in legal if (path / name).is_file()]
    if not found:
        raise ConfigError(f"init_from={path}: the folder has none of {', '.join(legal)}; name the file itself")
    if len(found) > 1:
        choices = ", ".join(str(file.relative_to(path)) for file in found)
        raise ConfigError(f"init_from={path}: the folder has several ({choices}); name the file itself")
    return found[0]


def load(model: nn.Module, start: WarmStart, head: str = "new") -> int:
    """Copy the warm start's weights into what `model` trains, except the head; return how many tensors were copied.

    head: "dense" copies the head's dense layer as well, and leaves its output layer new.
    Raises `ConfigError` if names or shapes differ: weights of another model, method or rank.
    """
    import torch

    from dual_lora import methods
    from dual_lora.models.head import is_head_parameter

    def stays_new(name: str) -> bool:
        return is_head_parameter(model, name) and not (head == "dense" and ".dense." in name)

    given = {name: tensor for name, tensor in methods.stored_state(start.path).items() if not stays_new(name)}
    own = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not stays_new(name)
    }
    if start.path.name == _PEFT_FILE:
        given = _full_names(given, own)
    if given.keys() != own.keys():
        different = sorted(given.keys() ^ own.keys())
        raise ConfigError(
            f"{start.path}: weights of another model or method; {len(different)} names differ, e.g. {different[0]!r}"
        )
    for name, parameter in own.items():
        if parameter.shape != given[name].shape:
            raise ConfigError(
                f"{start.path}: {name} has shape {tuple(given[name].shape)}, this run's {tuple(parameter.shape)}; "
                "the ranks of both runs have to be the same"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name])
    return len(own)


def _full_names(given: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Names in a PEFT file lack the adapter's name: `lora_A.weight` is the parameter `lora_A.default.weight`."""
    short = {name.replace(".modules_to_save.default", "").replace(".default", ""): name for name in own}
    return {short.get(name, name): tensor for name, tensor in given.items()}
