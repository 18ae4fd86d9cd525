"""Placement on a Ray cluster of two nodes whose GPUs are pretended: where bundles land is what the plan said."""

import os
import time
from collections import Counter

import pytest
import ray
from ray.cluster_utils import Cluster

from rlhf_ray.actors.placement import Demand, Placement, cluster_nodes, plan_placement
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


def landed(plan):
    """The node of each worker of each role, asked from actors placed as the driver places them."""
    placement = Placement(plan, 60.0)
    try:
        actors = {
            role: [ray.remote(Where).options(**placement.options(role, i)).remote() for i in range(n)]
            for role, n in plan.counts.items()
        }
        return {role: ray.get([a.node.remote() for a in own], timeout=120) for role, own in actors.items()}
    finally:
        placement.remove()


def test_roles_land_where_the_plan_says(cluster):
    demand = Demand(counts={"learner": 2, "rollout": 1, "reward": 1}, gpus_per_worker={"rollout": 4})
    config = ClusterConfig(colocate=False, gpus={"reward": 0.5}, num_threads=1)
    nodes = landed(plan_placement(config, demand, cluster_nodes()))
    assert len(set(nodes["learner"])) == 1
    assert nodes["rollout"][0] not in nodes["learner"]  # a node of its own: four GPUs
    assert nodes["reward"][0] in nodes["learner"]

    config = ClusterConfig(spread=True, num_threads=1)
    spread = plan_placement(config, Demand(counts={"rollout": 4}), cluster_nodes())
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < until:
        time.sleep(0.2)  # Ray evens out what is free, and the workers before are still leaving
    assert sorted(Counter(landed(spread)["rollout"]).values()) == [2, 2]
