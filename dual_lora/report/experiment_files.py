"""What a file of `experiments/` states: a sweep and a table.

A part of an experiment, whose rates differ by method, states what differs: `defaults: [EXPERIMENT, _self_]` is Hydra's
for the sweep, and here the part takes the columns, labels and figure of that experiment too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from dual_lora.config import legal_values
from dual_lora.config.choices import Loader


class DefinitionError(ValueError):
    """An experiment file that cannot be used; the message names the file, the setting and the legal values."""


def stated(path: Path, is_whole: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a file's sweep and table: of a part, over those of its experiment, whose title and blocks stay its own."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
        params, table = dict(values["hydra"]["sweeper"]["params"]), dict(values["table"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise DefinitionError(f"{path}: needs hydra.sweeper.params and table ({error})") from None
    match values.get("defaults"):
        case None:
            return params, table
        case [str(whole), "_self_"] if not is_whole:
            others = [other.stem for other in sorted(path.parent.glob("*.yaml")) if other != path]
            known(f"{path}: defaults: experiment {whole!r} does not exist", whole, others)
            theirs, shown = stated(path.with_name(f"{whole}.yaml"), is_whole=True)
        case wrong:
            raise DefinitionError(f"{path}: defaults={wrong}: a part has [EXPERIMENT, _self_], its experiment has none")
    inherited = {key: value for key, value in shown.items() if key not in ("title", "about", "blocks")}
    if isinstance(shown.get("labels"), dict) and isinstance(table.get("labels"), dict):
        table["labels"] = shown["labels"] | table["labels"]
    return theirs | params, inherited | table


def known(message: str, word: str, legal: Iterable[str]) -> None:
    """Raise `DefinitionError`, with the legal words, for one that is none of them."""
    if word not in legal:
        raise DefinitionError(f"{message}{legal_values(word, legal)}")
