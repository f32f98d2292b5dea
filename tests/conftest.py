"""What every test process does."""

from __future__ import annotations

import gc

import pytest

from tests import computed_once, fork_server

# What they assert is shown with its values, as in a test's own file.
pytest.register_assert_rewrite("tests.same_answer", "tests.split_llama")
computed_once.keep()
fork_server.load_all()


@pytest.fixture(autouse=True)
def what_is_left_is_no_garbage() -> None:
    """Every Trainer collects garbage, and would look through all imports and kept models: up to half a second."""
    gc.collect()
    gc.freeze()
