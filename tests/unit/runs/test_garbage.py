"""No garbage is collected while a run begins, and whatever happens it is again afterwards."""

from __future__ import annotations

import gc

import pytest

from dual_lora.runs.garbage import uncollected


def begin() -> None:
    with uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the outer one is not over"
        raise KeyError


def test_the_collector_rests_inside_and_works_again_after() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError):
        begin()
    assert gc.isenabled()
