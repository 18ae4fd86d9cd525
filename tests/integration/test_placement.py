"""Placement on a Ray cluster of two nodes whose GPUs are pretended: where bundles land is what the plan said."""

import os
import time
from collections import Counter
from functools import partial

import pytest
import ray
from ray.cluster_utils import Cluster

from rlhf_ray.actors.group import WorkerGroup
from rlhf_ray.actors.placement import Demand, Placement, cluster_nodes, plan_placement
from rlhf_ray.config import ClusterConfig
from rlhf_ray.plan import doctor

pytestmark = pytest.mark.integration


class Where:
    """Says which node it is on, and what it sees there."""

    def environment(self):
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF")
        return {"node": self.node(), "gpus": ray.get_gpu_ids(), **{name: os.environ.get(name) for name in names}}

    def node(self):
        return ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def cluster():
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 4, "include_dashboard": False})
    made.add_node(num_cpus=16, num_gpus=4)
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


def test_tensor_parallel_workers_see_the_gpus_of_their_slots_learner_ranks(cluster):
    demand = Demand(counts={"learner": 8, "rollout": 4, "reward": 3}, gpus_per_worker={"rollout": 2})
    placement = Placement(plan_placement(ClusterConfig(), demand, cluster_nodes()), 60.0)
    try:
        groups = {
            role: WorkerGroup(
                role,
                Where,
                count,
                arguments=lambda index: {},
                options=partial(placement.options, role),
                deadline_s=120,
                max_restarts=0,
            )
            for role, count in demand.counts.items()
        }
        seen = {role: group.broadcast("environment") for role, group in groups.items()}
        groups["learner"].sort_by_device()
        ranks = groups["learner"].broadcast("environment")
        for group in groups.values():
            group.kill()
    finally:
        placement.remove()
    learners = [(e["node"], e["CUDA_VISIBLE_DEVICES"]) for e in seen["learner"]]
    assert len(set(learners)) == 8  # each has a GPU for itself
    for index, rollout in enumerate(seen["rollout"]):
        slot = sorted(learners[2 * index : 2 * index + 2])
        assert [(rollout["node"], gpu) for gpu in rollout["CUDA_VISIBLE_DEVICES"].split(",")] == slot
        assert rollout["gpus"] == []  # none is reserved twice
    rewards = [(e["node"], e["CUDA_VISIBLE_DEVICES"]) for e in seen["reward"]]
    assert len(set(rewards)) == 3  # on three GPUs, each a learner rank's
    assert set(rewards) < set(learners)
    assert [(e["node"], e["gpus"]) for e in ranks] == sorted((e["node"], e["gpus"]) for e in seen["learner"])
    cores = {node["NodeID"]: node["Resources"]["CPU"] for node in ray.nodes()}
    assert {e["OMP_NUM_THREADS"] for e in ranks} == {"2", "4"}
    assert all(
        int(e["OMP_NUM_THREADS"]) == cores[e["node"]] // 4 for environments in seen.values() for e in environments
    )
    assert {e["PYTORCH_CUDA_ALLOC_CONF"] for e in ranks} == {"expandable_segments:True"}
    assert {e["PYTORCH_CUDA_ALLOC_CONF"] for e in seen["rollout"]} == {None}


def test_doctor_all_reduces_over_all_nodes(cluster):
    found = doctor.all_reduce("gloo", 4)
    assert found.seen.startswith("4 ranks on 2 node(s), ")
