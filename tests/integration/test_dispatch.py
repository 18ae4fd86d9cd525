"""Dispatch over real Ray actors that cost nothing: who gets what, and what a death changes."""

import time

import numpy as np
import pyarrow as pa
import pytest
import ray

from rlhf_ray.actors.group import WorkerGroup
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.train.dispatch import Collector, Order
from tests.benchmarks.zero_cost import Engine, Scorer
from tests.helpers import ROOT

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


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def group():
    """group(role, class, count, **arguments) starts workers that end with the test."""
    groups = []

    def start(role, cls, count, **arguments):
        options = {"num_cpus": 0, "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}}
        groups.append(
            WorkerGroup(
                role,
                cls,
                count,
                arguments=lambda i: arguments,
                options=lambda i: options,
                deadline_s=60.0,
                max_restarts=3,
            )
        )
        return groups[-1]

    yield start
    for workers in groups:
        workers.kill()


def order(step, first, count, samples):
    """Samples of ``count`` prompts from ``first`` on."""
    return Order(step, step, range(first, first + count), first, samples)


def test_pieces_of_two_orders_go_to_different_reward_workers(group):
    """While one step's rollouts are scored, the next step's go to the worker that is idle."""
    rollout, reward = group("rollout", Engine, 1), group("reward", SlowScorer, 2, seconds=1.0)
    collector = Collector(rollout, reward, 1, 0, 60.0)
    orders = [collector.generate(order(step, step, 1, samples=1), PROMPTS) for step in range(2)]  # a piece each
    for collection in orders:
        assert len(collection.scored()) == 1
    assert reward.broadcast("count") == [1, 1]
