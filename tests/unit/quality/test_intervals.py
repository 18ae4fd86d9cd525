"""Bootstrap intervals and win rates."""

import math

import numpy as np
import pytest

from rlhf_ray.quality import intervals


def test_an_interval_holds_the_mean_as_often_as_it_says():
    draw, hits = np.random.default_rng(1), 0
    for _ in range(60):
        interval = intervals.mean(draw.normal(2.0, 1.0, 80))
        hits += interval.low <= 2.0 <= interval.high
    assert 51 <= hits <= 60
    assert intervals.mean(np.array([3.0, np.nan, 3.0])) == intervals.Estimate(3.0, 3.0, 3.0)
    assert math.isnan(intervals.mean(np.array([np.nan])).mean)


def test_a_tie_is_half_a_win():
    assert intervals.win_rate(np.array([1.0, 2, 3, 0]), np.array([0.0, 2, 4, -1])).mean == pytest.approx(2.5 / 4)
    lost = np.array([np.nan, 2, 3, 0])
    assert intervals.win_rate(lost, np.array([0.0, 2, np.nan, -1])).mean == pytest.approx(1.5 / 2)
