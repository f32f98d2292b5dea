"""What is kept out of records and logs: tokens and keys, and in the recorded command the folders of this machine."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HIDDEN = "***"
_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
# Tokens by their form: Hugging Face, wandb in a URL or netrc, GitHub, AWS, OpenAI-like, and credentials in a URL.
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}\b|\bgh[pousr]_[A-Za-z0-9]{30,}\b|\bgithub_pat_\w{30,}\b|\bAKIA[A-Z0-9]{16}\b"
    r"|\bsk-[A-Za-z0-9_-]{20,}\b|\bwandb_v1_\w{20,}\b|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_ASSIGNED = re.compile(
    r"([\w.+-]*(?:token|secret|password|passwd|api[_-]?key|access[_-]?key)[\w-]*)(['\"]?\s*[=:]\s*)"
    r"('[^']*'|\"[^\"]*\"|[^\s,;'\"]+)",
    re.IGNORECASE,
)
# Names in this project that the pattern above would take for secrets.
_HARMLESS = re.compile(r"tokens?_?(?:per|share|s\b)|max_(?:new|length)_tokens|_token(?:s|izer|_id)", re.IGNORECASE)
# What no word of a sentence and no token of a vocabulary is: letters with digits among them, or many without a break.
_RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w+/.=~!@#$%^&*-]{6,}|[A-Za-z0-9]{20,}")


def hide(text: str) -> str:
    """Return the text without secrets: values of environment variables named like one, tokens by form, `token=...`."""
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= 8:
            text = text.replace(value, HIDDEN)
    text = _FORMS.sub(HIDDEN, text)
    return _ASSIGNED.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    """Return `name=***`, or all of it where the value is no secret: "share a token: the prompt", eos_token=</s>."""
    name, sign, value = found.groups()
    of_language = not name.isupper() and ("token" in name.lower() or sign.endswith(": "))
    if _HARMLESS.search(name) or (of_language and not _RANDOM.fullmatch(value.strip("'\""))):
        return found[0]
    return f"{name}{sign}{HIDDEN}"


# Settings and options whose value is a place on this machine.
_FOLDERS = frozenset(("data.dir", "model.path", "results", "hydra.searchpath", "adapter", "out", "home"))
_FOLDER_OPTIONS: tuple[str, ...] = (
    "--output",
    "--results",
    "--records",
    "--data-dir",
    "--data",
    "--weights",
    "--scratch",
    "--adapter",
)
_FOLDER_OPTIONS += ("--out", "--home", "--tokenizers")
# What says who ran it and how their cluster is laid out, and changes no number.
_PRIVATE = re.compile(r"launch\.(setup|container|sbatch|account|partition|qos|constraint)\b.*")
_PATH = re.compile(r"(?:^|[\s'\"=:,\[{(])(?:/|~/|\.\.?/|[A-Za-z]:\\)")


def shareable(words: Sequence[str]) -> str:
    """Return a command as a record keeps it: a shell reads it as these words, which are without secrets and places."""
    shown, follows = [], False
    for word in words:
        shown.append("FOLDER" if follows else _shareable(word))
        follows = word in _FOLDER_OPTIONS
    return shlex.join(shown)


def _shareable(word: str) -> str:
    key, given, value = word.partition("=")
    name = key.lstrip("+-")
    if given and _PRIVATE.fullmatch(name):
        return f"{key}={HIDDEN}"
    if given and value != "null" and (name in _FOLDERS or f"--{name}" in _FOLDER_OPTIONS or _PATH.search(value)):
        return f"{key}=FOLDER"
    return "FOLDER" if not given and _PATH.search(word) else hide(word)


def hide_all(values: Any, *, but: Iterable[str] = (), name: str = "") -> Any:
    """Return a JSON value with every text in it as `hide` leaves it, except those of the settings `but`."""
    if isinstance(values, Mapping):
        return {key: hide_all(value, but=but, name=f"{name}.{key}".lstrip(".")) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [hide_all(value, but=but, name=name) for value in values]
    return hide(values) if isinstance(values, str) and name not in but else values
