"""The statistics equal scipy's and an audit's own, and hold on simulated data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from dual_lora.report import definition, measured, stats
from tests import ROOT, committed

LORA = {0: 67.2, 1: 67.5, 2: 68.0, 3: 67.1, 4: 67.9, 5: 67.3, 6: 67.7}
OURS = {0: 67.5, 1: 67.4, 2: 68.6, 3: 67.2, 4: 68.1, 5: 67.9, 6: 67.6}


def seeded(values) -> dict[int, float]:
    return dict(enumerate(map(float, values)))


def study(name: str):
    """Return the measured rows of an experiment from the committed records, by method."""
    block = measured.block(definition.read(ROOT / "experiments" / f"{name}.yaml"), committed.typed())
    return {row.choices["method"]: row for row in block.rows}, block


def test_one_stratum_is_the_textbook_paired_t_test():
    found = stats.estimate(stats.differences([OURS], [LORA]))
    theirs = scipy_stats.ttest_rel(list(OURS.values()), list(LORA.values()))
    assert found.p_value() == pytest.approx(theirs.pvalue, rel=1e-12)
    assert found.interval() == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-12)
    assert (found.n, found.df) == (7, 6)


def test_equality_is_two_one_sided_t_tests():
    difference = np.array(list(OURS.values())) - np.array(list(LORA.values()))
    below = scipy_stats.ttest_1samp(difference, -0.5, alternative="greater").pvalue
    above = scipy_stats.ttest_1samp(difference, 0.5, alternative="less").pvalue
    found = stats.estimate(stats.differences([OURS], [LORA]))
    assert found.p_equal(0.5) == pytest.approx(max(below, above), rel=1e-12)
    inside = found.interval(0.90)
    assert (found.p_equal(0.5) < 0.05) == (inside[0] > -0.5 and inside[1] < 0.5)


def test_the_sign_flip_test_counts_all_flips():
    difference = np.array(list(OURS.values())) - np.array(list(LORA.values()))
    flips = np.array(np.meshgrid(*[[1, -1]] * 7)).reshape(7, -1).T
    means = (flips * difference).sum(axis=1)
    extreme = np.mean(np.abs(means) >= abs(difference.sum()) - 1e-9)
    assert stats.sign_flip(stats.differences([OURS], [LORA])) == pytest.approx(extreme)
    assert stats.sign_flip([seeded([1] * 6)]) == pytest.approx(2 / 64)
    assert stats.sign_flip([seeded([1] * 5)]) is None  # 2 / 32 at best: it could not reach 0.05


def test_more_pairs_than_can_be_enumerated_give_the_same_p_each_time():
    many = [seeded(np.random.default_rng(task).normal(0.4, 1, 5)) for task in range(5)]
    assert stats.sign_flip(many) == stats.sign_flip(many)
    values = np.concatenate([list(stratum.values()) for stratum in many])
    flips = np.random.default_rng(99).choice([1, -1], size=(40_000, values.size))
    extreme = np.mean(np.abs(flips @ values) >= abs(values.sum()))
    assert stats.sign_flip(many) == pytest.approx(extreme, abs=0.015)  # 4 standard errors of 9,999 draws


def test_an_average_over_tasks_has_the_audits_intervals():
    """GLUE against LoRA, stratified over tasks and seeds: an audit's own code gave these from the same records."""
    rows, block = study("glue_minilm")
    column = next(column for column in block.experiment.block.columns if column.average)
    known = {
        "dual_lora": (-0.51, -1.44, 0.42),
        "dora": (0.21, -0.17, 0.59),
        "full": (2.35, 1.52, 3.18),
        "vera": (-2.34, -3.26, -1.42),
    }
    for method, values in known.items():
        found = measured.difference(column, rows[method].columns["Avg."], rows["lora"].columns["Avg."])
        assert (found.mean, *found.interval()) == pytest.approx(values, abs=0.005), method
        assert found.n == 25
    assert measured.difference(
        column, rows["dual_lora"].columns["Avg."], rows["lora"].columns["Avg."]
    ).df == pytest.approx(9, abs=0.5)


def test_blocked_differences_have_the_audits_intervals():
    rows, _ = study("glue_minilm")
    per_seed = {
        method: [stats.average_per_seed(rows[method].columns["Avg."].scaled(100))]
        for method in ("full", "lora", "dora", "vera", "dual_lora")
    }
    found = stats.blocked(per_seed, "dual_lora", "lora")
    assert (found.mean, *found.interval()) == pytest.approx((-0.51, -1.28, 0.26), abs=0.005)
    assert found.df == 16
    rows, _ = study("commonsense_smollm2")
    losses = {m: rows[m].columns["val. loss"].scaled(1) for m in ("full", "lora", "dora", "dual_lora")}
    found = stats.blocked(losses, "dual_lora", "lora")
    assert (found.mean, *found.interval()) == pytest.approx((-0.0092, -0.0153, -0.0032), abs=5e-5)
    assert (found.df, found.p_value()) == (3, pytest.approx(0.016, abs=5e-4))


def test_two_methods_in_blocks_are_the_paired_t_test():
    pairs = stats.estimate(stats.differences([OURS], [LORA]))
    block = stats.blocked({"dual_lora": [OURS], "lora": [LORA]}, "dual_lora", "lora")
    assert (block.mean, block.se, block.df) == pytest.approx((pairs.mean, pairs.se, pairs.df))


def test_holm_gives_the_audits_p_values():
    """The smallest of 12 and of 28 p values of an audit, which rounded them to three places."""
    assert stats.holm([0.0435, *[0.5] * 11])[0] == pytest.approx(0.52, abs=0.005)
    assert stats.holm([0.0095, 0.0025, *[0.9] * 26])[:2] == pytest.approx([0.26, 0.071], abs=0.005)
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # never below a smaller one's
    assert stats.holm([]) == []


@pytest.mark.parametrize("sds", [(2.0,), (2.0, 0.3, 1.0, 5.0, 0.7)])
def test_the_interval_covers_the_true_mean_95_times_in_100(sds):
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(3000):
        strata = [seeded(generator.normal(70, sd, 5)) for sd in sds]
        low, high = stats.estimate(strata).interval()
        covered += low <= 70 <= high
    assert covered / 3000 == pytest.approx(0.95, abs=0.014)  # 3.5 standard errors


def test_blocked_intervals_cover_the_true_difference_95_times_in_100():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(1500):
        shared = generator.normal(70, 3, 4)  # what a seed does to every method
        methods = {name: [seeded(shared + generator.normal(shift, 0.4, 4))] for shift, name in enumerate("abcd")}
        low, high = stats.blocked(methods, "c", "a").interval()
        covered += low <= 2 <= high
    assert covered / 1500 == pytest.approx(0.95, abs=0.02)


def test_a_page_of_equal_methods_names_a_winner_at_most_5_times_in_100_with_holm():
    generator = np.random.default_rng(2)
    one, any_of_six = 0, 0
    for _ in range(1000):
        p_values = [stats.estimate([seeded(generator.normal(0, 1, 6))]).p_value() for _ in range(6)]
        one += min(p_values) < 0.05
        any_of_six += min(stats.holm(p_values)) < 0.05
    assert one / 1000 > 0.2  # what six unadjusted columns do
    assert any_of_six / 1000 < 0.05 + 0.024


def test_a_difference_as_large_as_the_margin_is_called_equal_5_times_in_100():
    generator = np.random.default_rng(3)
    called = sum(stats.estimate([seeded(generator.normal(0.5, 0.3, 8))]).p_equal(0.5) < 0.05 for _ in range(2000))
    assert called / 2000 == pytest.approx(0.05, abs=0.017)


def test_two_pairs_give_no_interval_and_no_p():
    found = stats.estimate([{0: 1.0, 1: 1.0001}])
    assert (found.interval(), found.p_value(), found.p_equal(5)) == (None, None, None)
    assert found.sd == pytest.approx(0.0001 / 2**0.5)


def test_five_pairs_have_an_interval_and_no_test_of_equality():
    found = stats.estimate([seeded([0.1, 0.2, 0.1, 0.2, 0.1])])
    assert found.interval() is not None
    assert found.p_equal(5) is None


def test_differences_without_spread_are_certain_and_none_is_no_difference():
    assert stats.estimate([seeded([1.0] * 6)]).p_value() == 0
    assert stats.estimate([seeded([0.0] * 6)]).p_value() == 1
    assert stats.estimate([seeded([0.0] * 6)]).p_equal(0.5) == 0
    assert stats.estimate([seeded([1.0] * 6)]).p_equal(0.5) == 1


def test_only_shared_seeds_are_paired():
    assert stats.differences([{0: 1.0, 1: 2.0, 7: 100.0}], [{0: 0.5, 1: 1.5, 9: -50.0}]) == [{0: 0.5, 1: 0.5}]
    assert stats.differences([{0: 1.0}, {0: 1.0}], [{0: 1.0}, {1: 1.0}]) is None


def test_spread_is_the_sample_standard_deviation():
    found = stats.estimate([seeded([1.0, 2.0, 6.0])])
    assert (found.mean, found.sd) == pytest.approx((3.0, 7**0.5))  # (4 + 1 + 9) / (3 - 1)
    assert stats.median([seeded([1.0, 2.0, 6.0]), seeded([5.0])]) == 3.5
    assert stats.estimate([{0: 0.5}]) == stats.Estimate(0.5, 1)


def test_subsets_of_one_run_are_averaged_within_a_seed_first():
    average = stats.average_per_seed([{0: 0.9, 1: 0.1, 2: 0.5}, {0: 0.1, 1: 0.9}])
    assert average == {0: 0.5, 1: 0.5}  # no spread over seeds, though each subset swings by 0.8


@pytest.mark.parametrize("strata", [[], [{}], [{0: float("nan"), 1: 1.0}]])
def test_undefined_values_are_refused(strata):
    with pytest.raises(ValueError, match="at least one"):
        stats.estimate(strata)
