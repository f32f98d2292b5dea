"""How long a GPU was busy: kernels of two streams overlap."""

from __future__ import annotations

import pytest

from dual_lora.benchmarks.timing import covered


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0.0),
        ([(0, 2), (5, 6)], 3.0),
        ([(5, 6), (0, 2), (1, 3)], 4.0),  # in any order; two overlap
        ([(0, 10), (2, 3), (9, 12), (4, 11)], 12.0),  # one inside another
        ([(0, 1), (1, 2)], 2.0),
    ],
)
def test_time_that_two_streams_share_counts_once(spans: list[tuple[float, float]], expected: float) -> None:
    assert covered(spans) == expected
