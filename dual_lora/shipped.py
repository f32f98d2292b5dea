"""Where the suite's own files are: next to the package in a checkout, inside it in an installed copy.

folder("configs")     also experiments and results/published
checkout()            what README.md, docs/ and results/benchmarks are relative to
home(), results()     what holds `results/`, and that folder: of runs, and of the commands that read them
command()             how this suite is started, as words
command_line(...)     these words as files have them that are committed, after PROGRAM
typed(line)           the same for the screen: as this user started the suite (program()); named(text): a help text
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = PACKAGE.parent
IN_CHECKOUT = (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "configs").is_dir()
PROGRAM = "python run.py" if IN_CHECKOUT else "dual-lora"


def folder(name: str) -> Path:
    """Return a folder that ships with the suite: configs, experiments or results/published."""
    return (_CHECKOUT if IN_CHECKOUT else PACKAGE / "suite") / name


def checkout() -> Path:
    """Return the checkout; where the package is installed, the current folder."""
    return _CHECKOUT if IN_CHECKOUT else Path.cwd()


def home() -> Path:
    """Return the folder that holds `results/`: the checkout, wherever its command is given.

    It is the current folder if its `results/` has records or evaluations: older versions left them where they started.
    """
    here = Path.cwd()
    return here if any((here / "results" / made).is_dir() for made in ("records", "local/evaluations")) else checkout()


def results() -> Path:
    """Return where runs and records are, unless `results=FOLDER` is given; relative if in the current folder."""
    return Path("results") if home() == Path.cwd() else home() / "results"


def word_for(folder: str | Path) -> list[str]:
    """Return what a command needs to use this results folder: `results=FOLDER`, or nothing where it would anyway."""
    return [] if Path(folder).resolve() == results().resolve() else [f"results={folder}"]


def command() -> list[str]:
    """Return the words that start this suite in another process, from any folder."""
    return [sys.executable, str(_CHECKOUT / "run.py")] if IN_CHECKOUT else [sys.executable, "-m", "dual_lora"]


def command_line(*words: str) -> str:
    """Return what a user types to give the suite these words: a shell passes them on as they are."""
    return f"{PROGRAM} {shlex.join(words)}"


def program() -> str:
    """Return how the user started the suite, as a shell takes it again where they stand."""
    started, python = Path(sys.argv[0]), shlex.quote(sys.orig_argv[0])
    if started.name == "dual-lora":
        return started.name if shutil.which(started.name) == sys.argv[0] else shlex.quote(sys.argv[0])
    if started.name == "__main__.py" and started.resolve().parent == PACKAGE:
        return f"{python} -m dual_lora"
    script = _CHECKOUT / "run.py"
    if started.name == script.name and started.resolve() == script:
        return f"{python} {shlex.quote(sys.argv[0])}"
    return PROGRAM if not IN_CHECKOUT or Path.cwd() == _CHECKOUT else f"python {shlex.quote(str(script))}"


def typed(line: str, *more: str) -> str:
    """Return a command line that begins with PROGRAM for the screen of this user, its first command with `more`."""
    first, pipe, rest = line.partition(" | ")
    line = f"{' '.join([first, *map(shlex.quote, more)])}{pipe}{rest}"
    modules = os.environ.get("PYTHONPATH") if "hydra.searchpath=" in line else None  # of the user's own files
    return f"{f'PYTHONPATH={shlex.quote(modules)} ' if modules else ''}{program()}{line.removeprefix(PROGRAM)}"


def named(text: str) -> str:
    """Return a help text, which says `python run.py`, with what this user says instead."""
    name = program()
    return re.sub(r"\b(?:python )?run\.py\b", lambda _: name, text)


def import_root() -> Path:
    """Return the folder that `PYTHONPATH` has to hold for `import dual_lora` to find this copy."""
    return _CHECKOUT
