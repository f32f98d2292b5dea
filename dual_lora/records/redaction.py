"""What is kept out of records and logs: tokens and keys, and in the recorded command the folders of this machine."""

from __future__ import annotations

import os
import re

HIDDEN = "***"
_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
# Tokens by their form: Hugging Face, wandb in a URL or netrc, GitHub, AWS, OpenAI-like, and credentials in a URL.
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}\b|\bgh[pousr]_[A-Za-z0-9]{30,}\b|\bgithub_pat_\w{30,}\b|\bAKIA[A-Z0-9]{16}\b"
    r"|\bsk-[A-Za-z0-9_-]{20,}\b|\bwandb_v1_\w{20,}\b|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_ASSIGNED = re.compile(
    r"((?:[\w.+-]*(?:token|secret|password|passwd|api_?key|access_?key)[\w-]*)\s*[=:]\s*)([^\s,;'\"]+)", re.IGNORECASE
)
# Names in this project that the pattern above would take for secrets.
_HARMLESS = re.compile(r"tokens?_?(?:per|share|s\b)|max_(?:new|length)_tokens|_token(?:s|izer|_id)", re.IGNORECASE)


def hide(text: str) -> str:
    """Return the text without secrets: values of environment variables named like one, tokens by form, `token=...`."""
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= 8:
            text = text.replace(value, HIDDEN)
    text = _FORMS.sub(HIDDEN, text)
    return _ASSIGNED.sub(lambda found: found[0] if _HARMLESS.search(found[1]) else found[1] + HIDDEN, text)


_FOLDERS = re.compile(r"(?<![\w.])(data\.dir|model\.path|results|hydra\.searchpath|adapter)=(?:'[^']*'|\"[^\"]*\"|\S+)")
_OPTIONS = re.compile(r"(--output|--results|--records|--data-dir|--data|--weights|--scratch)[ =]\S+")


def shareable(command: str) -> str:
    """Return a command as a record keeps it: without secrets, and folders by their setting's name only."""
    return _OPTIONS.sub(r"\1 FOLDER", _FOLDERS.sub(r"\1=FOLDER", hide(command)))
