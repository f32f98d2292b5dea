"""The arguments of a command: options, and for commands that take them the settings of a run.

An option is `--out FILE`, `--out=FILE` or, as run settings are written, `out=FILE`. For an unknown
one the error names the legal ones and the nearest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from dual_lora import shipped
from dual_lora.config import ConfigError, legal_values
from dual_lora.config.words import SEARCHPATH


class Parser(argparse.ArgumentParser):
    """A parser whose help is the docstring of the command's module and whose errors are `ConfigError`s."""

    def __init__(self, command: str, text: str | None) -> None:
        super().__init__(
            prog=f"{shipped.program()} {command}",
            description=shipped.named(text or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._takes_settings = False

    def take_settings(self) -> None:
        """Let `options.settings` hold the run settings (KEY=VALUE) that are given."""
        self._takes_settings = True

    def take_searchpath(self) -> None:
        """Let `options.searchpath` hold what is given as `hydra.searchpath=`, for the commands that are printed."""
        self.add_argument(
            f"--{SEARCHPATH.rstrip('=')}",
            dest="searchpath",
            metavar="'[file://FOLDER]'",
            help="where methods, tasks and recipes of your own are; printed commands have it too",
        )

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the options. Raises `ConfigError` for a word that is none, or a value that cannot be used."""
        given, settings = self._parted(list(map(self._as_option, words)))
        # Options with their values last: argparse takes no word after one for a list that began before it.
        options, rest = self.parse_known_args(sorted(given, key=lambda word: word.startswith("--") and "=" in word))
        if rest:
            raise ConfigError(f"unknown word {rest[0]!r}{legal_values(rest[0].partition('=')[0], self._names())}")
        if self._takes_settings:
            options.settings = settings
        return options

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise what argparse would print."""
        raise ConfigError(f"{message} (see --help)")

    def _parted(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return options with their values, and settings of a run: argparse would give a list those after it."""
        wants = {name for name, action in self._option_string_actions.items() if action.nargs != 0}
        parts: tuple[list[str], list[str]] = ([], [])
        for before, word in zip(("", *words), words, strict=False):
            is_setting = "=" in word and not word.startswith("-") and before not in wants
            parts[self._takes_settings and is_setting].append(word)
        return parts

    def _names(self) -> list[str]:
        return sorted(word for word in self._option_string_actions if word.startswith("--"))

    def _as_option(self, word: str) -> str:
        return f"--{word}" if f"--{word.partition('=')[0]}" in self._names() and "=" in word else word


def one_of(*legal: str) -> Callable[[str], str]:
    """Return the type of an option that has only these values."""

    def check(word: str) -> str:
        if word not in legal:
            raise argparse.ArgumentTypeError(f"{word!r}{legal_values(word, legal)}")
        return word

    return check
