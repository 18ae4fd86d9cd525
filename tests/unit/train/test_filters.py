"""Which rows of a step's rollouts are trained on."""

import numpy as np
import pytest

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import parse
from rlhf_ray.train.filters import (
    filter_rollouts,
    has_greedy_baseline,
    has_reward,
    in_group_of,
    in_varied_group,
)
from tests.helpers import rl_job

NAN = float("nan")


def rollouts(group, rewards, greedy=()):
    """Samples of two response tokens; those at the positions ``greedy`` have none in their mask."""
    masks = [np.array([0, 0, 0]) if i in greedy else np.array([0, 1, 1]) for i in range(len(group))]
    return from_sequences(
        [np.array([1, 2, 3])] * len(group),
        response_mask=masks,
        prompt_length=[1] * len(group),
        group=group,
        sample=np.arange(len(group)),
        rewards=rewards,
    )


def algorithm(**options):
    return parse(rl_job(algorithm=options), "job").algorithm


def test_a_sample_whose_reward_failed_has_none():
    assert has_reward(rollouts([1, 1, 2], [0.5, NAN, 0.0])).tolist() == [True, False, True]


def test_groups_are_measured_by_their_rows():
    batch = rollouts([4, 4, 7, 9, 9, 9], [0.0] * 6)
    assert in_group_of(batch, 2).tolist() == [True, True, False, True, True, True]
    assert in_group_of(batch, 3).tolist() == [False, False, False, True, True, True]


def test_a_greedy_baseline_has_no_response_in_its_mask():
    batch = rollouts([1, 1, 2, 2], [0.0] * 4, greedy={1})
    assert has_greedy_baseline(batch).tolist() == [True, True, False, False]


def test_groups_of_equal_rewards_do_not_vary():
    batch = rollouts([1, 1, 2, 2, 3], [0.0, 1.0, 1.0, 1.0, 5.0])
    assert in_varied_group(batch).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("dynamic_sampling", [None, {"max_rounds": 1}])
def test_failed_samples_and_the_groups_they_break_are_left_out(dynamic_sampling):
    batch = rollouts([1, 1, 2, 2, 3, 3], [0.0, 1.0, NAN, 1.0, 4.0, 4.0])
    result = filter_rollouts(batch, algorithm(type="grpo", group_size=2, dynamic_sampling=dynamic_sampling))
    assert result.batch.sample.tolist() == ([0, 1, 4, 5] if dynamic_sampling is None else [0, 1])
    assert (result.num_failed, result.num_equal_groups) == (1, 2)  # what is left of group 2 cannot vary


def test_one_sample_a_prompt_needs_no_other():
    batch = rollouts([1, 2, 3], [0.0, NAN, 1.0])
    assert filter_rollouts(batch, algorithm(type="ppo", group_size=1)).batch.group.tolist() == [1, 3]


def test_a_sample_without_its_greedy_baseline_is_left_out():
    batch = rollouts([1, 1, 1, 2, 2, 2], [0.0, 1.0, 0.5, 0.0, 1.0, NAN], greedy={2, 5})
    result = filter_rollouts(batch, algorithm(type="remax", group_size=2))
    assert result.batch.group.tolist() == [1, 1, 1]


def test_nothing_may_be_left():
    batch = rollouts([1, 1], [1.0, 1.0])
    result = filter_rollouts(batch, algorithm(type="grpo", group_size=2, dynamic_sampling={"max_rounds": 1}))
    assert (len(result.batch), result.num_equal_groups) == (0, 1)
