"""Where the suite's own files are: next to the package in a checkout, inside it in an installed copy.

folder("configs")     also experiments and results/published
home()                what `results/`, README.md and docs/ are relative to: the checkout, or the current folder
command()             how this suite is started, as words; PROGRAM: as a user types it, command_line(...): with words
"""

from __future__ import annotations

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


def home() -> Path:
    """Return the folder that holds `results/`."""
    return _CHECKOUT if IN_CHECKOUT else Path.cwd()


def command() -> list[str]:
    """Return the words that start this suite in another process, from any folder."""
    return [sys.executable, str(_CHECKOUT / "run.py")] if IN_CHECKOUT else [sys.executable, "-m", "dual_lora"]


def command_line(*words: str) -> str:
    """Return what a user types to give the suite these words: a shell passes them on as they are."""
    return f"{PROGRAM} {shlex.join(words)}"


def here() -> str:
    """Return how a user of this machine starts the suite: PROGRAM, or with the environment that is not activated."""
    found = shutil.which("python")
    if not IN_CHECKOUT or (found and Path(found).parent.resolve() == Path(sys.executable).parent.resolve()):
        return PROGRAM
    python = Path(sys.executable)
    return f"{python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python} run.py"


def import_root() -> Path:
    """Return the folder that `PYTHONPATH` has to hold for `import dual_lora` to find this copy."""
    return _CHECKOUT
