"""From rollouts to advantages: truncated samples, baselines, preference pairs."""

import numpy as np
import pytest

from rlhf_ray.algorithms.estimate import estimate_advantages
from rlhf_ray.batch import from_sequences
from rlhf_ray.config import BadInput, parse
from rlhf_ray.train.rl import actor_objective
from tests.helpers import rl_job


def remax(truncated):
    """Two groups of a sample and a greedy row."""
    masks = [[0, 1, 1], [0, 0, 0]] * 2
    batch = from_sequences(
        [np.arange(3)] * 4,
        response_mask=list(map(np.array, masks)),
        prompt_length=[1] * 4,
        group=[0, 0, 1, 1],
        example_id=[0, 0, 1, 1],
        sample=[0, 1, 0, 1],
        rewards=[1.0, 0.25, 3.0, 1.0],
        truncated=truncated,
        old_log_probs=[np.zeros(3)] * 4,
    )
    job = parse(rl_job(algorithm={"type": "remax", "truncated": "mask"}), "job")
    return estimate_advantages(batch, job.algorithm, 0.0, 8)[0]


def test_a_truncated_sample_is_no_greedy_one():
    assert remax([0, 0, 0, 0]).group.tolist() == [0, 1]
    left = remax([1, 0, 0, 1])
    assert left.group.tolist() == [1]
    np.testing.assert_allclose(left.advantages, [0, 2, 2])
    assert len(remax([1, 1, 1, 1])) == 0


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo", "reinforce_plus_plus"])
def test_a_step_whose_samples_are_all_truncated_leaves_nothing(kind):
    job = parse(rl_job(algorithm={"type": kind, "truncated": "mask", "group_size": 2}), "job")
    tokens = [np.zeros(3)] * 4
    batch = from_sequences(
        tokens,
        response_mask=[np.array([0, 1, 1])] * 4,
        prompt_length=[1] * 4,
        group=[0, 0, 1, 1],
        rewards=np.arange(4),
        truncated=[1] * 4,
        old_log_probs=tokens,
        ref_log_probs=tokens,
        values=tokens,
        final_values=[0] * 4,
    )
    assert len(estimate_advantages(batch, job.algorithm, 0.1, 8)[0]) == 0


def test_online_dpo_learns_from_the_best_and_the_worst_of_each_group():
    job = parse(rl_job(algorithm={"type": "online_dpo", "group_size": 3}), "job")
    tokens = [np.zeros(3)] * 9
    batch = from_sequences(
        tokens,
        response_mask=[np.array([0, 1, 1])] * 9,
        prompt_length=[1] * 9,
        group=np.arange(9) // 3,
        rewards=[1, 3, 2, 5, 5, 5, 2, 0, 2],
        truncated=[0] * 9,
        old_log_probs=tokens,
        ref_log_probs=tokens,
        example_id=np.arange(9) // 3,
        sample=np.arange(9) % 3,
    )
    annotated, _ = estimate_advantages(batch, job.algorithm, 0.1, 8)
    assert list(zip(annotated.group, annotated.sample, annotated.labels[:, 0], strict=True)) == [
        (0, 0, 0),
        (0, 1, 1),
        (2, 0, 1),
        (2, 1, 0),
    ]
    objective = actor_objective(job, kl_coef=0.1, use_importance_weights=False)
    assert (objective.unit, objective.config.beta, objective.weight(annotated)) == ("group", 0.1, 2)
    with pytest.raises(BadInput, match=r"kl\.coef is DPO's beta"):
        parse(rl_job(algorithm={"type": "online_dpo", "kl": {"coef": 0}}), "job")
