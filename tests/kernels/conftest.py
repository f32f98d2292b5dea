"""Where the Triton kernels run: in Triton's interpreter where TRITON_INTERPRET=1 asks for it, else on the GPU."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest
import torch

from tests.kernels.interpreter import mend_interpreter

# Never set here: the interpreter would be on for whatever else this process tests.
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = find_spec("triton") is not None
if INTERPRETS and HAS_TRITON:
    mend_interpreter()


@pytest.fixture
def fused_device() -> str:
    """The device on which kernel='fused' can run."""
    if not HAS_TRITON:
        # The development extras bring it wherever it exists, so its absence there would leave the kernels untested.
        (pytest.fail if sys.platform == "linux" else pytest.skip)("Triton is not installed: pip install -e '.[dev]'")
    if INTERPRETS:
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("the kernels need a GPU or Triton's interpreter: make test-interpreter")
    return "cuda"


@pytest.fixture(params=["generic", pytest.param("fused", marks=pytest.mark.triton)])
def path(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A kernel and the device it is tested on."""
    if request.param == "generic":
        return "generic", "cpu"
    return "fused", request.getfixturevalue("fused_device")


@pytest.fixture
def cuda() -> str:
    """The name of the GPU's device; the test carries the marker gpu."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"
