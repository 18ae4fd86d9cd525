"""The scale of reward models' scores: frozen once, and the same after a checkpoint."""

import json

import numpy as np
import pytest

from rlhf_ray.config import parse
from rlhf_ray.rewards.normalise import RewardScale
from tests.helpers import SHARE, rl_job


@pytest.fixture
def rewards():
    """A rule of weight 1 and a reward model of weight 2 whose scores are standardised."""
    model = {"name": "model", "type": "model", "path": "somewhere", "weight": 2.0, "standardise": True}
    return parse(rl_job(rewards={"terms": [SHARE, model]}), "job").rewards


def test_the_first_rollouts_freeze_the_scale(rewards):
    scale = RewardScale(rewards)
    first = np.array([[0.5, 10.0], [0.0, 14.0]], np.float32)
    scale.freeze(first)
    np.testing.assert_allclose(scale.total(first), [0.5 - 2.0, 2.0])
    scale.freeze(np.array([[0.0, -100.0], [0.0, 100.0]], np.float32))
    np.testing.assert_allclose(scale.total(first), [-1.5, 2.0])
    again = RewardScale(rewards)
    again.restore(json.loads(json.dumps(scale.state())))
    np.testing.assert_array_equal(again.total(first), scale.total(first))
    scale.reset()
    assert scale.state() is None


def test_without_a_scale_scores_count_as_they_are(rewards):
    np.testing.assert_allclose(RewardScale(rewards).total(np.array([[0.5, 10.0]])), [20.5])
