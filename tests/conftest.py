"""What every test process does."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def what_is_left_is_no_garbage() -> Iterator[None]:
    """Every Trainer collects garbage, and would look through all imports and kept models: up to half a second."""
    yield
    gc.collect()
    gc.freeze()
