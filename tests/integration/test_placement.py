"""Placement on a Ray cluster of two nodes whose GPUs are pretended: where bundles land is what the plan said."""

import os
import time
from collections import Counter

import pytest
import ray
from ray.cluster_utils import Cluster

from rlhf_ray.actors.placement import Placement, nodes, plan
from rlhf_ray.config import ClusterConfig

pytestmark = pytest.mark.integration


class Where:
    """Says which node it is on."""

    def node(self):
        return ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def cluster():
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 4, "include_dashboard": False})
    made.add_node(num_cpus=8, num_gpus=4)
    ray.init(address=made.address, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def landed(found):
    """The node of each worker of each role, asked from actors placed as the driver places them."""
    placement = Placement(found, 60.0)
    try:
        actors = {
            role: [ray.remote(Where).options(**placement.options(role, i)).remote() for i in range(n)]
            for role, n in found.counts.items()
        }
        return {role: ray.get([a.node.remote() for a in own], timeout=120) for role, own in actors.items()}
    finally:
        placement.remove()


def test_roles_land_where_the_plan_says(cluster):
    counts = {"learner": 2, "rollout": 1, "reward": 1}
    config = ClusterConfig(colocate=False, gpus={"reward": 0.5}, num_threads=1)
    found = plan(config, counts, nodes(), {"rollout": 4})
    there = landed(found)
    assert len(set(there["learner"])) == 1
    assert there["rollout"][0] not in there["learner"]  # a node of its own: four GPUs
    assert there["reward"][0] in there["learner"]

    spread = plan(ClusterConfig(spread=True, num_threads=1), {"rollout": 4}, nodes())
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < until:
        time.sleep(0.2)  # Ray evens out what is free, and the workers before are still leaving
    assert sorted(Counter(landed(spread)["rollout"]).values()) == [2, 2]
