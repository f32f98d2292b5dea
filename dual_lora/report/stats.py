"""Means, intervals and paired differences over seeds.

Seeds are the unit: an average over subsets is taken within each seed first, and every spread is the sample
standard deviation (n - 1) over seeds. Two methods are compared on the seeds both have, pair by pair, because a seed
fixes data order and initialisation for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

MIN_SEEDS = 3  # with fewer no cell is marked as better


@dataclass(frozen=True)
class Summary:
    """`center` is the mean, or the median where the published way asks for it; None where it is undefined."""

    n: int
    center: float
    sd: float | None  # sample standard deviation; None for one seed
    low: float | None  # 95 % interval of the mean
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of the pairwise differences (ours minus the reference) with its 95 % interval."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero, on at least three pairs."""
        if self.n < MIN_SEEDS or self.low is None or self.high is None:
            return False
        return self.low > 0 or self.high < 0


def summarize(values: Sequence[float], *, median: bool = False, confidence: float = 0.95) -> Summary:
    """Return mean (or median), sample standard deviation and Student-t interval of the mean over seeds.

    Raises `ValueError` without values or with one that is not finite.
    """
    sample = _finite(values)
    low, high = _interval(sample, confidence)
    sd = float(sample.std(ddof=1)) if len(sample) > 1 else None
    return Summary(len(sample), float(np.median(sample) if median else sample.mean()), sd, low, high)


def paired_difference(
    ours: Mapping[int, float], reference: Mapping[int, float], *, confidence: float = 0.95
) -> Difference | None:
    """Return the mean difference over the seeds both have (seed -> score), or None where they share none."""
    seeds = sorted(ours.keys() & reference.keys())
    if not seeds:
        return None
    differences = _finite([ours[seed] - reference[seed] for seed in seeds])
    low, high = _interval(differences, confidence)
    return Difference(len(seeds), float(differences.mean()), low, high)


def average_per_seed(subsets: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return seed -> unweighted mean over subsets, for the seeds every subset (seed -> score) has."""
    if not subsets:
        return {}
    seeds = set.intersection(*(set(subset) for subset in subsets))
    return {seed: math.fsum(subset[seed] for subset in subsets) / len(subsets) for seed in sorted(seeds)}


def _interval(sample: np.ndarray, confidence: float) -> tuple[float | None, float | None]:
    if len(sample) < 2:
        return None, None
    half = stats.t.ppf(0.5 + confidence / 2, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    return float(sample.mean() - half), float(sample.mean() + half)


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    sample = np.asarray(values, dtype=float)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"{values!r}: statistics need at least one value, all of them finite")
    return sample
