"""Fetches PEFT's own tests, which its source distribution ships, at the version that is installed.

They are unpacked into an ignored cache folder and never copied into this repository.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import peft
import pytest

from tests import ROOT

CACHE = ROOT / ".cache"


def peft_sources() -> Path:
    """Return the unpacked source distribution of the installed PEFT, downloading it once (1 MB)."""
    folder = CACHE / f"peft-{peft.__version__}"
    if (folder / "tests" / "test_custom_models.py").exists():
        return folder
    CACHE.mkdir(exist_ok=True)
    archive = CACHE / f"{folder.name}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary", ":all:", "--dest", str(CACHE), f"peft=={peft.__version__}"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if not archive.exists():
            message = result.stderr.strip().splitlines()[-1:] or ["no message"]
            pytest.skip(
                f"pip cannot fetch the sources of PEFT {peft.__version__}: {message[0]}", allow_module_level=True
            )
    with tarfile.open(archive) as tar:
        tar.extractall(CACHE, filter="data")
    return folder
