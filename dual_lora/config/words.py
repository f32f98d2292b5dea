"""The words of a command line as Hydra's grammar reads them: what a shell passed on is taken as it is.

Hydra reads `(`, `#`, a quote, a backslash or a letter outside ASCII as grammar. Nobody should have to quote a folder's
name a second time, within the quotes of the shell.
"""

from __future__ import annotations

from collections.abc import Sequence

PATHS = ("data.dir", "model.path", "results", "init_from")  # settings whose whole value is a name on this machine
_QUOTES = ("'", '"')


def for_hydra(words: Sequence[str]) -> list[str]:
    """Return the words with those values quoted that Hydra's grammar would read as something else, or refuse.

    A list, a dictionary and a quoted text are left as they are. In a sweep (-m) a comma separates values of a path too.
    """
    sweep = bool({"-m", "--multirun"} & set(words))
    return [_quoted(word, sweep=sweep) for word in words]


def _quoted(word: str, *, sweep: bool) -> str:
    key, given, value = word.partition("=")
    if not given or not value or key.startswith(("-", "~")) or value.startswith(_QUOTES):
        return word
    if key.lstrip("+") in PATHS and value != "null":
        return f"{key}={','.join(map(_text, value.split(',') if sweep else [value]))}"
    return word if value.startswith(("[", "{")) or _is_grammar(word) else f"{key}={_text(value)}"


def _is_grammar(word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _text(value: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(value, Quote.single).with_quotes()
