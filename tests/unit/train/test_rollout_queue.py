"""Rollouts of a step: seeds of refills, groups that are left out, what a checkpoint holds."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from rlhf_ray.batch import cat, from_sequences
from rlhf_ray.config import parse
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.rewards.reward import RewardError
from rlhf_ray.train.dispatch import chunks
from rlhf_ray.train.reward_scale import RewardScale
from rlhf_ray.train.rollout_queue import Rollouts
from tests.helpers import rl_job

PROMPTS = Prompts(
    [np.array([5, 6]), np.array([7])], pa.table({"example_id": [0, 1], "prompt": ["a", "b"]}), np.array([0, 1])
)


class Scored:
    """Answers orders as a Collector would: reward ``value(group)``, plus the sample's number where the group varies."""

    def __init__(self, value, varied):
        self.value, self.varied, self.orders = value, varied, []

    def generate(self, order, prompts):
        self.orders.append(order)
        return SimpleNamespace(order=order, scored=lambda: self.collect(order, prompts))

    def collect(self, order, prompts):
        rows = []
        for chunk in chunks(order, prompts, 2, 0):
            for group, example, first in zip(chunk.group, chunk.example_id, chunk.first_sample, strict=True):
                for j in range(order.samples):
                    reward = self.value(group) + j * self.varied(group)
                    rows.append((group, example, first + j, reward))
        group, example, sample, reward = map(np.array, zip(*rows, strict=True))
        return from_sequences(
            [np.array([1, 2, 3])] * len(rows), response_mask=[np.array([0, 1, 1])] * len(rows), group=group,
            example_id=example, sample=sample, prompt_length=[1] * len(rows), reward_parts=reward[:, None],
        ).sorted()  # fmt: skip

    def take_counters(self):
        return {}

    def forget(self):
        pass


def rollouts(value=lambda g: 1.0, varied=lambda g: True, **algorithm):
    job = parse(rl_job(algorithm={"type": "grpo", "group_size": 2, **algorithm}), "job")
    return Rollouts(job, Scored(value, varied), PROMPTS, RewardScale(job.rewards))


def test_refills_that_visit_a_prompt_again_sample_anew():
    made = rollouts(varied=lambda g: g % 5 == 0, dynamic_sampling={"max_rounds": 4})
    batch, metrics = made.take(0)  # 8 prompts of 2, so every round visits each of them several times
    names = list(zip(batch.example_id.tolist(), batch.sample.tolist(), strict=True))
    assert len(set(names)) == len(names)
    assert metrics["rollout/refills"] == 3
    every = cat(Scored(lambda g: 0, lambda g: 0).collect(o, PROMPTS) for o in made.collector.orders)
    names = list(zip(every.example_id.tolist(), every.sample.tolist(), strict=True))
    assert len(set(names)) == len(names)


def test_a_step_trains_on_what_there_is_and_one_without_a_varied_group_on_nothing(tmp_path):
    made = rollouts(varied=lambda g: g in (3, 30), dynamic_sampling={"max_rounds": 2})
    first, metrics = made.take(0)
    assert (len(first), metrics["rollout/groups"]) == (2, 1)
    made.fetch(1)
    state = made.save(tmp_path)
    again = rollouts()
    again.restore(tmp_path, state)
    for one in (made, again):
        second, metrics = one.take(1)
        assert len(second) == 2
    third, metrics = made.take(2)
    assert (len(third), metrics["rollout/groups"]) == (0, 0)


def test_an_empty_step_survives_a_checkpoint(tmp_path):
    made = rollouts(varied=lambda g: False, dynamic_sampling={"max_rounds": 1})
    made.fetch(0)
    again = rollouts()
    again.restore(tmp_path, made.save(tmp_path))
    assert len(again.take(0)[0]) == 0


@pytest.mark.filterwarnings("ignore:(Mean of empty|Degrees of freedom)")
def test_a_step_in_which_every_reward_failed_ends_the_run():
    with pytest.raises(RewardError, match="no sample got a reward"):
        rollouts(value=lambda g: float("nan")).take(0)


def test_nothing_runs_once_rollouts_are_closed():
    made = rollouts()
    made.take(0)
    made.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        made.fetch(1)
