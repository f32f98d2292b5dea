"""What a user may put into a job's `#SBATCH` lines, and how long a job has to be."""

from __future__ import annotations

import re
import shlex

from dual_lora.config import ConfigError, RunConfig

EARLY_SECONDS = 60  # sbatch's manual, --signal: before the moment that was asked for
_WORD = re.compile(r"[\w.,:+@%=/-]+", re.ASCII)
_CONSTRAINT = re.compile(r"[\w.,:+@%=/&|*()\[\]!-]+", re.ASCII)
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
# Options that this module sets itself, or that would run or write something other than the run.
_RESERVED = frozenset(
    ("array", "batch", "bcast", "chdir", "error", "export", "export-file", "get-user-env", "gid", "input", "job-name")
    + ("nodes", "no-requeue", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal", "time", "uid")
    + ("wrap",)
)


def check_options(config: RunConfig) -> None:
    """Refuse a value that could escape its line of the job script, or its folder. Raises `ConfigError`."""
    launch = config.launch
    for name, legal in (("partition", _WORD), ("account", _WORD), ("qos", _WORD), ("constraint", _CONSTRAINT)):
        value = getattr(launch, name)
        if value is not None and not legal.fullmatch(value):
            raise ConfigError(f"launch.{name}={value!r}: legal are letters, digits and {legal.pattern[3:-2]}")
    for key, value in launch.sbatch.items():
        if not _OPTION.fullmatch(key) or key in _RESERVED:
            raise ConfigError(
                f"launch.sbatch: option {key!r} is not allowed; legal are sbatch's long options without their leading "
                f"dashes, except {', '.join(sorted(_RESERVED))}"
            )
        if value is False or not (isinstance(value, (str, int, float)) and str(value).isprintable()):
            raise ConfigError(f"launch.sbatch.{key}={value!r}: a number, true, or a text on one line")
    for name, text in [("setup", line) for line in launch.setup] + [("container", launch.container or " ")]:
        if not text.isprintable():
            raise ConfigError(f"launch.{name}={text!r}: one line each, without control characters")
    if launch.container is not None:
        try:
            shlex.split(launch.container)
        except ValueError as error:
            raise ConfigError(f"launch.container={launch.container!r} is not a valid command ({error})") from None
    if not config.results.isprintable() or "%" in config.results:
        raise ConfigError(f"results={config.results!r}: SLURM cannot use a folder with % or control characters")
    if launch.signal_seconds + EARLY_SECONDS >= launch.time_limit_minutes * 60:
        raise ConfigError(
            f"launch.time_limit_minutes={launch.time_limit_minutes}, launch.signal_seconds={launch.signal_seconds}: "
            f"the signal must come after the start and before the limit, and SLURM sends it up to {EARLY_SECONDS} s "
            "early; give more minutes, or fewer seconds"
        )
