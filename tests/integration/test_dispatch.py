"""Dispatch over real Ray actors that cost nothing: who gets what, and what a death changes."""

import time

import numpy as np
import pyarrow as pa
import pytest
import ray

from rlhf_ray.data.prompts import Prompts
from rlhf_ray.train.dispatch import Dispatcher, RolloutRequest
from tests.benchmarks.zero_cost import PROMPT, RESPONSE, Engine, Scorer
from tests.helpers import end_actor

pytestmark = pytest.mark.integration

NUM_PROMPTS = 12
PROMPTS = Prompts(
    [np.ones(16, np.int32)] * NUM_PROMPTS,
    pa.table({"example_id": range(NUM_PROMPTS), "prompt": ["p"] * NUM_PROMPTS}),
    np.arange(NUM_PROMPTS),
)


class SlowScorer(Scorer):
    """Takes a while for each piece, and counts them."""

    def __init__(self, seconds):
        self.seconds, self.num_pieces = seconds, 0

    def score(self, batch, rows, only=None):
        self.num_pieces += 1
        time.sleep(self.seconds)
        return super().score(batch, rows, only)

    def count(self):
        return self.num_pieces


class StepScorer(Scorer):
    """Rewards steps too."""

    def score(self, batch, rows, only=None):
        return {**super().score(batch, rows, only), "step_rewards": np.full(len(batch.tokens), 0.5)}


def dispatcher_of(rollout, reward, chunk_prompts=1):
    return Dispatcher(rollout=rollout, reward=reward, chunk_prompts=chunk_prompts, run_seed=0, deadline_s=60.0)


def request_of(step, first, count, samples):
    """Samples of ``count`` prompts from ``first`` on."""
    return RolloutRequest(
        step=step, version=step, prompts=range(first, first + count), first_group=first, samples=samples
    )


def test_pieces_of_two_requests_go_to_different_reward_workers(start_group):
    """While one step's rollouts are scored, the next step's go to the worker that is idle."""
    rollout, reward = start_group("rollout", Engine, 1), start_group("reward", SlowScorer, 2, seconds=1.0)
    dispatcher = dispatcher_of(rollout, reward)
    requests = [request_of(step, step, 1, samples=1) for step in range(2)]  # a piece each
    for pending in [dispatcher.generate(request, PROMPTS) for request in requests]:
        assert len(pending.scored()) == 1
    assert reward.broadcast("count") == [1, 1]


def test_scores_are_added_to_what_was_generated(start_group):
    """The columns of the scored batch are those that the engine made, and those that the reward worker returned."""
    rollout, reward = start_group("rollout", Engine, 2), start_group("reward", StepScorer, 2)
    dispatcher = dispatcher_of(rollout, reward, chunk_prompts=2)
    pending = dispatcher.generate(request_of(3, 0, NUM_PROMPTS, samples=3), PROMPTS)
    chunks = pending.chunks
    batch = pending.scored()
    names = list(zip(batch.example_id.tolist(), batch.sample.tolist(), strict=True))
    assert names == [(example, sample) for example in range(NUM_PROMPTS) for sample in range(3)]
    np.testing.assert_array_equal(batch.reward_parts, (batch.sample % 3)[:, None])
    np.testing.assert_array_equal(batch.step_rewards, np.full(len(batch.tokens), 0.5))
    pieces = [piece for chunk in chunks for piece in Engine().generate(3, chunk, len(chunk))]
    for name in pieces[0].columns():
        expected = np.concatenate([getattr(piece, name) for piece in pieces])
        np.testing.assert_array_equal(getattr(batch, name), expected, err_msg=name)
    assert set(batch.columns()) == {*pieces[0].columns(), "reward_parts", "step_rewards"}


def most_bytes_stored(seconds):
    """The most bytes that Ray's object store has held during the next ``seconds``."""
    until, most = time.monotonic() + seconds, 0.0
    while time.monotonic() < until:
        free = ray.available_resources().get("object_store_memory", 0.0)
        most = max(most, ray.cluster_resources()["object_store_memory"] - free)
        time.sleep(0.1)
    return most


def test_a_piece_is_in_the_object_store_once(start_group):
    """The reward worker reads the rollout worker's object: no second copy of the tokens is made for it."""
    rollout, reward = start_group("rollout", Engine, 1), start_group("reward", SlowScorer, 1, seconds=1.0)
    num_samples = 40_000
    pending = dispatcher_of(rollout, reward).generate(request_of(0, 0, 1, num_samples), PROMPTS)
    bytes_per_token = 4 + 1 + 4  # ids, mask and log-probs
    piece_bytes = bytes_per_token * num_samples * (PROMPT + RESPONSE)
    assert piece_bytes < most_bytes_stored(seconds=2.0) < 2 * piece_bytes
    assert len(pending.scored()) == num_samples


def test_a_dead_reward_workers_pieces_are_scored_by_its_replacement(start_group):
    rollout, reward = start_group("rollout", Engine, 1), start_group("reward", SlowScorer, 1, seconds=0.5)
    pending = dispatcher_of(rollout, reward).generate(request_of(0, 0, 2, samples=8), PROMPTS)
    end_actor(reward.actors[0])
    assert len(pending.scored()) == 16
    assert reward.num_restarts == 1
