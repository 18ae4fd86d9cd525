"""Bootstrap intervals of means, paired differences and win rates. Seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap 95 % interval (percentile, 10,000 resamples, seed 0)."""

    mean: float
    low: float
    high: float


def mean(values: np.ndarray) -> Estimate:
    """Of the values that are not NaN."""
    from scipy import stats  # here, as every driver would wait for it

    kept = np.asarray(values, dtype=float)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        return Estimate(float("nan"), float("nan"), float("nan"))
    middle = float(kept.mean())
    if kept.std() == 0:
        return Estimate(middle, middle, middle)
    rng = np.random.default_rng(0)
    bootstrap = stats.bootstrap((kept,), np.mean, n_resamples=10_000, method="percentile", rng=rng, batch=1000)
    return Estimate(middle, float(bootstrap.confidence_interval.low), float(bootstrap.confidence_interval.high))


def win_rate(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """Share of paired scores in which ours is higher; a tie counts a half, a pair with a NaN nothing."""
    won = (ours > theirs) + 0.5 * (ours == theirs)
    return mean(np.where(np.isnan(ours) | np.isnan(theirs), np.nan, won))
