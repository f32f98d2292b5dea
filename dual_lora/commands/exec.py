"""Run another program that can load Dual LoRA adapters then: it starts with the method known to PEFT.

    python run.py exec lm_eval --model hf --model_args pretrained=BASE,peft=ADAPTER --tasks hellaswag
    python run.py exec python_module --its-own options
    python run.py exec script.py

The program is a console script that a package has installed, a module, or a file that ends in .py. It runs in this
process, with its own arguments.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from dual_lora import shipped
from dual_lora.config import ConfigError


def main(words: list[str]) -> int:
    """Run the program and return its exit code. Raises `ConfigError` if there is no such program."""
    if not words or words[0] in ("-h", "--help"):
        print(shipped.named(__doc__))
        return 0 if words else 2
    program = words[0]
    scripts = list(entry_points(group="console_scripts", name=program))
    if not scripts and not program.endswith(".py") and not _is_module(program):
        raise ConfigError(f"exec {program}: neither a console script, nor a module, nor a file that ends in .py")
    import dual_lora.tuner  # noqa: F401  # registers the method

    sys.argv = list(words)
    if scripts:
        result = scripts[0].load()()
        return result if isinstance(result, int) else 0
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).resolve().parent))
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    return 0


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False
