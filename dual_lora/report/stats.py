"""Means and differences over seeds, with intervals and tests.

A sample comes in strata: the seeds of one task, or of several tasks whose average is shown. Runs of different tasks are
unrelated, whatever their seeds are called, so each task is one stratum with a variance of its own, and the degrees of
freedom are Satterthwaite's. With one stratum every formula here is the one-sample t of a textbook. Two methods are
compared on the seeds both have, pair by pair, because a seed fixes data order and initialisation for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

MIN_DF = 2.0  # two pairs (one degree of freedom) give no interval: it would be 12.7 standard errors wide
MIN_PAIRS = 6  # of a sign-flip test that can reach 0.05, of a test of equality, of a bold cell
_RESAMPLES = 9_999  # of a sign-flip test with more than 13 pairs; fewer are enumerated

Stratum = Mapping[int, float]  # seed -> value


@dataclass(frozen=True)
class Estimate:
    """A mean over strata with its standard error.

    sd: of one value (one stratum), or of an average made of one value per stratum. sd and se are None where a stratum
    has one value only.
    """

    mean: float
    n: int  # values, of all strata together
    sd: float | None = None
    se: float | None = None
    df: float = 0.0

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Return the t interval of the mean; None below two degrees of freedom."""
        if self.se is None or self.df < MIN_DF:
            return None
        half = float(stats.t.ppf(0.5 + confidence / 2, self.df)) * self.se
        return self.mean - half, self.mean + half

    def p_value(self) -> float | None:
        """Return the two-sided p of a mean of zero; None where there is no interval."""
        if self.interval() is None:
            return None
        return min(1.0, 2 * self._above(abs(self.mean)))

    def p_equal(self, margin: float, least: int = MIN_PAIRS) -> float | None:
        """Return the p of "the mean is `margin` or more from zero", by two one-sided t tests (TOST).

        Below 0.05 the mean is shown to be within the margin. None with fewer than `least` values.
        """
        if self.n < least or self.interval() is None:
            return None
        return max(self._above(self.mean + margin), self._above(margin - self.mean))

    def _above(self, distance: float) -> float:
        """Return P(t > distance / se)."""
        assert self.se is not None
        if self.se == 0:
            return 0.0 if distance > 0 else 0.5 if distance == 0 else 1.0
        return float(stats.t.sf(distance / self.se, self.df))


def estimate(strata: Sequence[Stratum]) -> Estimate:
    """Return the mean over strata of each one's mean. Raises `ValueError` for no value or one that is not finite."""
    samples = [_finite(stratum) for stratum in strata]
    if not samples:
        raise ValueError("statistics need at least one stratum")
    variances = [float(sample.var(ddof=1)) if len(sample) > 1 else None for sample in samples]
    return _combined(
        [float(sample.mean()) for sample in samples],
        variances,
        [len(sample) for sample in samples],
        [len(sample) - 1 for sample in samples],
    )


def median(strata: Sequence[Stratum]) -> float:
    """Return the mean over strata of each one's median: how GLUE's rows are published."""
    return float(np.mean([np.median(_finite(stratum)) for stratum in strata]))


def differences(ours: Sequence[Stratum], reference: Sequence[Stratum]) -> list[dict[int, float]] | None:
    """Return seed -> ours minus reference for each stratum, over the seeds both have; None where one shares none."""
    pairs = [
        {seed: mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())}
        for mine, theirs in zip(ours, reference, strict=True)
    ]
    return pairs if pairs and all(pairs) else None


def detectable(strata: Sequence[Stratum], n: int, power: float = 0.8, level: float = 0.05) -> float | None:
    """Return the difference that a paired t test with `n` pairs a stratum finds with that power.

    From the spread of the first `MIN_PAIRS` pairs of each stratum alone, never their mean: what a blinded look at the
    number of seeds may use. None where a stratum has fewer, or where the power is reached at any difference.
    """
    first = [_finite(dict(sorted(stratum.items())[:MIN_PAIRS])) for stratum in strata]
    if n < 2 or min(map(len, first)) < MIN_PAIRS:
        return None
    variances = [float(sample.var(ddof=1)) for sample in first]
    planned = _combined([0.0] * len(first), variances, [n] * len(first), [n - 1] * len(first))
    if not planned.se:
        return None
    critical = float(stats.t.isf(level / 2, planned.df))

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(critical, planned.df, shift)) - power  # the other tail is below 1e-5 there

    return float(optimize.brentq(lacking, 0.0, critical + 10)) * planned.se


def sign_flip(strata: Sequence[Stratum]) -> float | None:
    """Return the two-sided p of a paired sign-flip test of the estimate's mean; None with fewer than `MIN_PAIRS`.

    No distribution is assumed but that a difference is as likely as its negative. All signs are tried up to 13 pairs;
    with more, 9,999 draws of a fixed generator.
    """
    samples = [_finite(stratum) for stratum in strata]
    weighted = np.concatenate([sample / (len(sample) * len(samples)) for sample in samples])
    if len(weighted) < MIN_PAIRS:
        return None
    found = stats.permutation_test(
        (weighted,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def blocked(methods: Mapping[str, Sequence[Stratum]], method: str, reference: str) -> Estimate | None:
    """Return method minus reference with the residual variance of all methods: a two-way table, methods × seeds.

    Seeds that a method lacks are left out for all. The pooled residual has (methods - 1)(seeds - 1) degrees of freedom
    per stratum, more than the pairs of two methods, and assumes that all methods scatter alike. None where a stratum
    has no seed in common.
    """
    means, variances, counts, dfs = [], [], [], []
    for place in range(len(methods[reference])):
        parts = {name: strata[place] for name, strata in methods.items()}
        seeds = sorted(set.intersection(*(set(part) for part in parts.values())))
        if not seeds:
            return None
        table = np.array([[part[seed] for seed in seeds] for part in parts.values()])
        residual = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        df = (len(parts) - 1) * (len(seeds) - 1)
        names = list(parts)
        means.append(float((table[names.index(method)] - table[names.index(reference)]).mean()))
        variances.append(2 * float((residual**2).sum()) / df if df else None)
        counts.append(len(seeds))
        dfs.append(df)
    return _combined(means, variances, counts, dfs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number by Holm's step-down, in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def average_per_seed(subsets: Sequence[Stratum]) -> dict[int, float]:
    """Return seed -> unweighted mean over subsets of one run, for the seeds every subset (seed -> score) has."""
    if not subsets:
        return {}
    seeds = set.intersection(*(set(subset) for subset in subsets))
    return {seed: math.fsum(subset[seed] for subset in subsets) / len(subsets) for seed in sorted(seeds)}


def _combined(
    means: Sequence[float], variances: Sequence[float | None], counts: Sequence[int], dfs: Sequence[int]
) -> Estimate:
    """Return the mean of stratum means; `variances` are of one value, None where a stratum does not tell."""
    strata, n = len(means), sum(counts)
    known = [variance for variance in variances if variance is not None]
    if len(known) < strata:
        return Estimate(math.fsum(means) / strata, n)
    of_means = [variance / count for variance, count in zip(known, counts, strict=True)]
    total = math.fsum(of_means)
    if strata == 1 or total == 0:
        df = float(sum(dfs))
    else:
        df = total**2 / math.fsum(v**2 / own for v, own in zip(of_means, dfs, strict=True))
    sd, se = math.sqrt(math.fsum(known)) / strata, math.sqrt(total) / strata
    return Estimate(math.fsum(means) / strata, n, sd, se, df)


def _finite(stratum: Stratum) -> np.ndarray:
    sample = np.array([stratum[seed] for seed in sorted(stratum)], dtype=float)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"{dict(stratum)!r}: statistics need at least one value, all of them finite")
    return sample
