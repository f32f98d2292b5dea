"""Every composition that ships, and the digest that each had when somebody last looked at what changed.

    python -m tests.compositions --dump before.json   # all settings in full; run it again after a change and compare
    python -m tests.compositions --write              # rewrite tests/compositions.txt, once the difference is wanted

A composition is a command line: each recipe, each default recipe, each profile, launcher, method, model and protocol,
each experiment with all its cells. `tests/known_answers/test_first_step.py`, which composes every recipe anyway, holds
those against the file; `tests/unit/config/test_compositions.py` the others.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dual_lora.config import RunConfig, recipes
from dual_lora.config.choices import CONFIGS, options
from dual_lora.config.compose import compose

DIGESTS = Path(__file__).with_suffix(".txt")
DATA = "/data"  # what experiments read from DUAL_LORA_DATA


def of_recipe(recipe: str) -> str:
    """Return the command line that takes a recipe, its words joined by spaces."""
    model, *task, method = recipe.split("/")
    if model == recipes.DEFAULT:
        return f"task={'/'.join([*task, method])} model=tiny_llama method=lora"
    return f"model={model} task={'/'.join(task)} method={method}"


def names() -> list[str]:
    """Return the command line of every composition."""
    found = [of_recipe(recipe) for recipe in recipes.names()]
    for group in ("profile", "launch", "method", "model"):
        found += [f"{group}={name}" for name in options(group)]
    first = {task.split("/")[0]: task for task in reversed(options("task"))}  # a task of each family
    for path in sorted((CONFIGS / "protocol").glob("*/*.yaml")):
        if not path.name.startswith("_"):
            found.append(f"task={first[path.parent.name]} protocol={path.stem}")
    return [*found, *(f"-m experiment={name}" for name in options("experiment"))]


def composed(name: str) -> list[dict[str, Any]]:
    """Return the settings of each cell of a command line. `DUAL_LORA_DATA` must be `DATA`."""
    return [cell.to_dict() for cell in compose(name.split())]


def is_committed(name: str, cells: list[RunConfig]) -> bool:
    """Return whether the cells of a command line have the digest in the committed file."""
    return committed().get(name) == digest([cell.to_dict() for cell in cells])


def digest(cells: list[dict[str, Any]]) -> str:
    """Return the SHA-256 of the settings, in hexadecimal."""
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


@functools.cache
def committed() -> dict[str, str]:
    """Return the digest of each composition in the committed file."""
    lines = DIGESTS.read_text(encoding="utf-8").splitlines()
    return {name: held for held, _, name in (line.partition(" ") for line in lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dump", type=Path, metavar="FILE", help="write all settings of all compositions as JSON")
    what.add_argument("--write", action="store_true", help=f"rewrite {DIGESTS.name}")
    arguments = parser.parse_args()
    os.environ["DUAL_LORA_DATA"] = DATA
    cells = {name: composed(name) for name in names()}
    if arguments.dump:
        arguments.dump.write_text(json.dumps(cells, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    else:
        DIGESTS.write_text("".join(f"{digest(cells[name])} {name}\n" for name in sorted(cells)), encoding="utf-8")


if __name__ == "__main__":
    main()
