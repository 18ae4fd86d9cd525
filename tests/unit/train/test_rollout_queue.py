"""Rollouts of a step: seeds of refills, groups that are left out, what a checkpoint holds."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from rlhf_ray.batch import cat, from_sequences
from rlhf_ray.config import parse
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.rewards.normalise import RewardScale
from rlhf_ray.rewards.reward import DROPPED, RewardError
from rlhf_ray.train.dispatch import cut_into_chunks
from rlhf_ray.train.rollout_queue import RolloutQueue
from tests.helpers import rl_job

PROMPTS = Prompts(
    [np.array([5, 6]), np.array([7])], pa.table({"example_id": [0, 1], "prompt": ["a", "b"]}), np.array([0, 1])
)


class InstantDispatcher:
    """Answers requests at once: reward ``value(group)``, plus the sample's number if the group varies."""

    def __init__(self, value, varies):
        self.value, self.varies, self.requests = value, varies, []

    def generate(self, request, prompts):
        self.requests.append(request)
        return SimpleNamespace(request=request, scored=lambda: self.collect(request, prompts))

    def collect(self, request, prompts):
        rows = []
        for chunk in cut_into_chunks(request, prompts, 2, 0):
            for group, example, first in zip(chunk.group, chunk.example_id, chunk.first_sample, strict=True):
                for j in range(request.samples):
                    reward = self.value(group) + j * self.varies(group)
                    rows.append((group, example, first + j, reward))
        group, example, sample, reward = map(np.array, zip(*rows, strict=True))
        return from_sequences(
            [np.array([1, 2, 3])] * len(rows),
            response_mask=[np.array([0, 1, 1])] * len(rows),
            group=group,
            example_id=example,
            sample=sample,
            prompt_length=[1] * len(rows),
            reward_parts=reward[:, None],
        ).sorted()

    def take_counters(self):
        return {}

    def reset_load(self):
        pass


def queue_of(value=lambda g: 1.0, varies=lambda g: True, **algorithm):
    job = parse(rl_job(algorithm={"type": "grpo", "group_size": 2, **algorithm}), "job")
    return RolloutQueue(job, InstantDispatcher(value, varies), PROMPTS, RewardScale(job.rewards))


def identities(batch):
    """(example_id, sample) of each row."""
    return list(zip(batch.example_id.tolist(), batch.sample.tolist(), strict=True))


def test_refills_that_visit_a_prompt_again_sample_other_answers():
    queue = queue_of(varies=lambda g: g % 5 == 0, dynamic_sampling={"max_rounds": 4})
    batch, metrics = queue.take(0)  # 8 prompts of 2, so every round visits each of them several times
    assert len(set(identities(batch))) == len(batch)
    assert metrics["rollout/refills"] == 3
    dispatcher = InstantDispatcher(lambda g: 0, lambda g: 0)
    generated = cat(dispatcher.collect(request, PROMPTS) for request in queue.dispatcher.requests)
    assert len(set(identities(generated))) == len(generated)


def test_a_step_trains_on_what_there_is_and_one_without_a_varied_group_on_nothing(tmp_path):
    queue = queue_of(varies=lambda g: g in (3, 30), dynamic_sampling={"max_rounds": 2})
    first, metrics = queue.take(0)
    assert (len(first), metrics["rollout/groups"]) == (2, 1)
    queue.fetch(1)
    restored = queue_of()
    restored.restore(tmp_path, queue.save(tmp_path))
    for one in (queue, restored):
        second, metrics = one.take(1)
        assert len(second) == 2
    third, metrics = queue.take(2)
    assert (len(third), metrics["rollout/groups"]) == (0, 0)


def test_an_empty_step_survives_a_checkpoint(tmp_path):
    queue = queue_of(varies=lambda g: False, dynamic_sampling={"max_rounds": 1})
    queue.fetch(0)
    restored = queue_of()
    restored.restore(tmp_path, queue.save(tmp_path))
    assert len(restored.take(0)[0]) == 0


def test_what_is_left_out_is_counted():
    queue = queue_of(value=lambda g: DROPPED if g == 1 else 1.0, varies=lambda g: g > 3)
    batch, metrics = queue.take(0)
    assert len(batch) == 14
    assert (metrics["rollout/dropped"], metrics["rollout/zero_variance_groups"]) == (2, 3)


@pytest.mark.filterwarnings("ignore:(Mean of empty|Degrees of freedom)")
def test_a_step_in_which_every_reward_failed_ends_the_run():
    with pytest.raises(RewardError, match="step 0: no sample got a reward"):
        queue_of(value=lambda g: DROPPED).take(0)


def test_a_step_to_which_no_term_applies_ends_the_run_and_single_samples_are_counted(caplog):
    caplog.set_level("INFO", logger="rlhf_ray")
    with pytest.raises(RewardError, match="step 0: no sample got a reward"):
        queue_of(value=lambda g: float("nan")).take(0)
    caplog.clear()
    batch, metrics = queue_of(value=lambda g: float("nan") if g == 1 else 1.0).take(0)
    assert (len(batch), metrics["rollout/dropped"]) == (16, 0)
    assert batch.rewards[batch.group == 1].tolist() == [0.0, 0.0]
    assert "no reward term applies to 2 of 16 samples" in caplog.text


def test_nothing_runs_once_the_queue_is_closed():
    queue = queue_of()
    queue.take(0)
    queue.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        queue.fetch(1)
