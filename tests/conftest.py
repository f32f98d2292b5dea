"""What every test process does."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True)
def what_is_left_is_no_garbage() -> None:
    """Every Trainer collects garbage, and would look through all imports and kept models: up to half a second."""
    gc.collect()
    gc.freeze()
