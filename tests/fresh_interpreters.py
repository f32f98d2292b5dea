"""What programs print that begin without dual_lora, peft and transformers: forks of one interpreter.

What PEFT and transformers need of torch takes seconds to import, and is the same for all.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests import ROOT

_FORKS = """
import gc, os, sys
import scipy.optimize, torch, torch._dynamo, torch.distributed.tensor
assert not sys.modules.keys() & {"dual_lora", "peft", "transformers"}
gc.freeze()
for number, program in enumerate(sys.argv[2:]):
    if os.fork() == 0:
        os.dup2(os.open(f"{sys.argv[1]}/{number}", os.O_CREAT | os.O_WRONLY), 1)
        exec(program, {"sys": sys})
        sys.stdout.flush()
        os._exit(0)  # taking torch apart would take longer than the program
    assert os.wait()[1] == 0, program
"""


def run_python(code: str, *words: str) -> str:
    """Return the output of `code` in a fresh interpreter."""
    command = [sys.executable, "-c", code, *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def printed(programs: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return what each program prints, in which `sys` is imported and sys.argv[1] is `folder`."""
    run_python(_FORKS, str(folder), *programs.values())
    return {name: (folder / str(number)).read_text() for number, name in enumerate(programs)}
