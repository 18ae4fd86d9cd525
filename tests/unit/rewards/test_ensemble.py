"""An ensemble of reward models counts as one term."""

import numpy as np
import pytest

from rlhf_ray.config import ModelReward, RewardsConfig
from rlhf_ray.config.rewards import RuleReward
from rlhf_ray.rewards.normalise import measure_scales, total_reward, without_any_term, without_dropped
from rlhf_ray.rewards.reward import DROPPED


def test_the_reward_is_the_weighted_sum_with_models_standardised():
    terms = [RuleReward(name="a", rule="length", weight=2.0), ModelReward(name="m", path="x", weight=0.5)]
    parts = np.array([[1.0, 10.0], [0.0, 14.0]], np.float32)
    assert total_reward(parts, RewardsConfig(terms=terms), {"m": (10.0, 2.0)}).tolist() == [2.0, 1.0]


def test_terms_that_do_not_apply_add_nothing_and_a_dropped_part_drops_the_sample():
    """As TRL sums: a sample to which no term applies has 0."""
    terms = [RuleReward(name="a", rule="length", weight=2.0), RuleReward(name="b", rule="length")]
    parts = np.array([[1.0, 3.0], [np.nan, 3.0], [np.nan, np.nan], [DROPPED, 3.0], [np.nan, DROPPED]], np.float32)
    np.testing.assert_array_equal(total_reward(parts, RewardsConfig(terms=terms), {}), [5.0, 3.0, 0.0, np.nan, np.nan])
    assert without_any_term(parts).tolist() == [False, False, True, False, False]
    np.testing.assert_array_equal(without_dropped(parts)[3], [np.nan, 3.0])


def test_a_dropped_sample_does_not_spoil_the_scale():
    rewards = RewardsConfig(terms=[ModelReward(name="m", path="x")])
    assert measure_scales(np.array([[1.0], [DROPPED], [3.0]], np.float32), rewards) == {"m": (2.0, 1.0)}


@pytest.mark.parametrize("how", ["mean", "min", "uncertainty"])
def test_an_ensemble_counts_once(how):
    models = [ModelReward(name=name, path=name, weight=3.0) for name in "abc"]
    terms = [models[0], RuleReward(name="r", rule="length", weight=2.0), *models[1:], ModelReward(name="d", path="d")]
    ensemble = {"members": ["c", "a", "b"], "combine": how, "coef": 0.5}
    rewards = RewardsConfig(terms=terms, ensembles=[ensemble])
    parts = np.random.default_rng(0).normal(2, 5, (40, 5)).astype(np.float32)
    reward_scales = measure_scales(parts[:20], rewards)  # of the first rollouts, kept for those that come
    assert reward_scales.keys() == set("abcd")
    totals = total_reward(parts, rewards, reward_scales)
    for row, value in zip(parts, totals, strict=True):
        each = [(row[i] - reward_scales[n][0]) / reward_scales[n][1] for n, i in (("a", 0), ("b", 2), ("c", 3))]
        mean = sum(each) / 3
        variance = sum((x - mean) ** 2 for x in each) / 3
        one = {"mean": mean, "min": min(each), "uncertainty": mean - 0.5 * variance}[how]
        alone = (row[4] - reward_scales["d"][0]) / reward_scales["d"][1]
        assert value == pytest.approx(3.0 * one + 2.0 * row[1] + alone, rel=1e-4, abs=1e-4)
    parts[3, 2] = DROPPED
    assert np.flatnonzero(np.isnan(total_reward(parts, rewards, reward_scales))).tolist() == [3]


@pytest.mark.parametrize(
    ("members", "changes", "says"),
    [
        (["a", "x"], {}, "'x' is not a term with type: model"),
        (["a", "r"], {}, "'r' is not a term with type: model"),
        (["a", "b"], {"standardise": False}, "'b' is not a term with type: model"),
        (["a", "b"], {"steps": "."}, "'b' is not a term with type: model"),
        (["a", "a"], {}, "'a' is a member twice"),
        (["a", "b"], {"weight": 2.0}, "a, b have different weights"),
    ],
)
def test_an_ensemble_that_is_none(members, changes, says):
    terms = [
        RuleReward(name="r", rule="length"),
        ModelReward(name="a", path="a"),
        ModelReward(name="b", path="b", **changes),
    ]
    with pytest.raises(ValueError, match=says):
        RewardsConfig(terms=terms, ensembles=[{"members": members}])
