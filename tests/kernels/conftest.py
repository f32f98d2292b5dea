"""Where the Triton kernels run: on the GPU if there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from interpreter import enable_interpreter

HAS_TRITON = torch.cuda.is_available() or enable_interpreter()


@pytest.fixture
def fused_device() -> str:
    """The device on which kernel='fused' can run."""
    if not HAS_TRITON:
        pytest.skip("Triton is not installed")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def cuda() -> str:
    """The name of the GPU's device; the test carries the marker gpu."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"
