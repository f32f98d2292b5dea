"""Do the composed runs, or be one of the processes that do.

A worker (`--worker FILE`, or `--group FILE` for the parent of several) reads the resolved settings in its run folder
and never composes.
"""

from __future__ import annotations

from dual_lora import shipped
from dual_lora.commands import COMMANDS
from dual_lora.config import ConfigError, legal_values
from dual_lora.config.compose import compose
from dual_lora.config.usage import help_text


def main(words: list[str]) -> int:
    """Return 0 if every run finished. Raises `ConfigError`."""
    if words[:1] == ["--worker"]:
        from dual_lora.launch import work

        return work(words[1])
    if words[:1] == ["--group"]:
        from dual_lora.launch.group import work as work_group

        return work_group(words[1])
    if not words or {"-h", "--help"} & set(words):
        print(f"{help_text()}\n\nCommands ({shipped.program()} COMMAND --help):\n")
        print("\n".join(f"  {name:<24} {meaning}" for name, meaning in COMMANDS.items()))
        return 0
    if "=" not in words[0] and not words[0].startswith(("-", "~")):
        raise ConfigError(f"unknown command {words[0]!r}{legal_values(words[0], COMMANDS)}")
    configs = compose(words)
    if not configs:  # --cfg and the like, which print
        return 0
    from dual_lora.launch import launch

    return launch(configs)
