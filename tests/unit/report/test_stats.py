"""The statistics hold on simulated data whose truth is known."""

import numpy as np
import pytest

from dual_lora.report import stats


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_covers_the_true_mean_95_times_in_100(n):
    draws = np.random.default_rng(0).normal(70.0, 2.0, size=(4000, n))
    summaries = [stats.summarize(row) for row in draws]
    covered = np.mean([s.low <= 70.0 <= s.high for s in summaries])
    assert covered == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors of a share of 0.95 over 4,000 draws


def test_equal_methods_are_called_different_5_times_in_100():
    generator = np.random.default_rng(1)
    called = 0
    for _ in range(4000):
        shared = generator.normal(70, 3, size=5)  # what a seed does to both methods
        ours, reference = shared + generator.normal(0, 0.3, 5), shared + generator.normal(0, 0.3, 5)
        called += stats.paired_difference(dict(enumerate(ours)), dict(enumerate(reference))).significant
    assert called / 4000 == pytest.approx(0.05, abs=0.012)


def test_pairing_finds_a_difference_that_the_spread_over_seeds_hides():
    generator = np.random.default_rng(2)
    found = 0
    for _ in range(500):
        shared = generator.normal(70, 3, size=5)
        ours, reference = shared + 1 + generator.normal(0, 0.3, 5), shared + generator.normal(0, 0.3, 5)
        found += stats.paired_difference(dict(enumerate(ours)), dict(enumerate(reference))).significant
    assert found / 500 > 0.9


def test_two_seeds_never_make_a_difference_significant():
    difference = stats.paired_difference({0: 1.0, 1: 1.0001}, {0: 0.0, 1: 0.0})
    assert difference.low > 0
    assert not difference.significant


def test_only_shared_seeds_are_paired():
    difference = stats.paired_difference({0: 1.0, 1: 2.0, 7: 100.0}, {0: 0.5, 1: 1.5, 9: -50.0})
    assert (difference.n, difference.mean) == (2, 0.5)
    assert stats.paired_difference({0: 1.0}, {1: 1.0}) is None


def test_spread_is_the_sample_standard_deviation():
    summary = stats.summarize([1.0, 2.0, 6.0])
    assert summary.center == 3.0
    assert summary.sd == pytest.approx(7**0.5)  # (4 + 1 + 9) / (3 - 1)
    assert stats.summarize([1.0, 2.0, 6.0], median=True).center == 2.0


def test_one_seed_has_no_spread():
    summary = stats.summarize([0.5])
    assert (summary.n, summary.center, summary.sd, summary.low) == (1, 0.5, None, None)


def test_subsets_are_averaged_within_a_seed_first():
    boolq, piqa = {0: 0.9, 1: 0.1, 2: 0.5}, {0: 0.1, 1: 0.9}
    average = stats.average_per_seed([boolq, piqa])
    assert average == {0: 0.5, 1: 0.5}  # no spread over seeds, though each subset swings by 0.8
    assert stats.summarize(list(average.values())).sd == 0


@pytest.mark.parametrize("values", [[], [float("nan"), 1.0]])
def test_undefined_values_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        stats.summarize(values)
