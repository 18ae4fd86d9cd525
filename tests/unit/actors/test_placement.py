"""The plan of devices: which worker gets which GPUs, on which node, and what is refused with what is missing."""

import subprocess
import sys

import pytest

from rlhf_ray.actors.placement import gpus_each, plan
from rlhf_ray.config import BadInput, ClusterConfig, RolloutConfig, RuleReward, parse

COUNTS = {"learner": 2, "rollout": 2, "reward": 1}


def machines(*gpus, cpus=16.0):
    return [{"CPU": cpus, "GPU": float(n)} if n else {"CPU": cpus} for n in gpus]


def gpus_of(found):
    return [s.get("GPU", 0) for s in found.slots]


def where(found, role):
    return [found.nodes[s] for s in found.seats[role]]


def test_a_tensor_parallel_worker_owns_its_gpus():
    found = plan(ClusterConfig(colocate=False), COUNTS, machines(7), {"rollout": 2})
    assert gpus_of(found) == [1, 1, 2, 2, 1]
    assert "2 rollout (2 GPUs each)" in found.lines()[0]


def test_colocated_workers_share_equal_slots():
    found = plan(ClusterConfig(), COUNTS, machines(2), {"rollout": 1})
    assert gpus_of(found) == [1, 1]
    assert {role: share["GPU"] for role, share in found.share.items()} == dict.fromkeys(COUNTS, 0.33)


@pytest.mark.parametrize(
    ("config", "gpus", "says"),
    [
        (ClusterConfig(colocate=False), 6, "needs 7 GPUs"),
        (ClusterConfig(), 8, "cluster.colocate=false"),
        (ClusterConfig(device="cpu", colocate=False), 0, "tensor_parallel_size=1"),
    ],
)
def test_tensor_parallelism_without_gpus_of_its_own_is_refused(config, gpus, says):
    with pytest.raises(BadInput, match=says):
        plan(config, COUNTS, machines(gpus), {"rollout": 2})


def test_a_tensor_parallel_group_stays_in_a_node_and_learner_ranks_are_packed():
    found = plan(ClusterConfig(colocate=False), {"learner": 4, "rollout": 2}, machines(4, 4, 4), {"rollout": 4})
    assert len(set(where(found, "learner"))) == 1
    assert len(set(where(found, "rollout"))) == 2
    assert found.lines()[1] == "nodes: 2 with 1 rollout; one with 4 learner"
    assert [how for how, _ in found.groups] == ["PACK", "PACK"]
    assert found.groups[0][1] == found.seats["rollout"]  # what needs a whole node is placed first


def test_enough_gpus_on_the_wrong_nodes_are_refused():
    with pytest.raises(BadInput, match=r"the widest of 4 GPUs of one node, and its nodes have 3 GPUs.*3 GPUs"):
        plan(ClusterConfig(colocate=False), {"learner": 1, "rollout": 1}, machines(3, 3), {"rollout": 4})


@pytest.mark.parametrize(("spread", "nodes"), [(False, [0, 4]), (True, [2, 2])])
def test_rollout_workers_fill_nodes_or_go_round_them(spread, nodes):
    config = ClusterConfig(colocate=False, spread=spread)
    found = plan(config, {"learner": 1, "rollout": 4}, machines(4, 4))
    there = where(found, "rollout")
    assert sorted(there.count(n) for n in (0, 1)) == nodes
    assert {how for how, which in found.groups if found.seats["rollout"][0] in which} == {
        "SPREAD" if spread else "PACK"
    }


def test_fractions_share_a_gpu_and_none_takes_none():
    config = ClusterConfig(colocate=False, gpus={"rollout": 0.5, "reward": 0.25})
    found = plan(config, {"learner": 1, "rollout": 3, "reward": 2}, machines(3))
    assert found.seats == {"learner": [0], "rollout": [1, 1, 2], "reward": [2, 2]}
    assert gpus_of(found) == [1, 1, 1]
    none = plan(ClusterConfig(colocate=False, gpus={"reward": 0}), COUNTS, machines(4))
    assert gpus_of(none) == [1, 1, 1, 1, 0]
    assert none.device_of("reward") == "cpu"
    assert none.device_of("learner") == "cuda"


def test_shares_of_a_colocated_gpu():
    found = plan(ClusterConfig(gpus={"reward": 0.1}), COUNTS, machines(2))
    assert found.share["reward"]["GPU"] == 0.1
    assert found.share["learner"]["GPU"] == found.share["rollout"]["GPU"] == 0.45


@pytest.mark.parametrize(
    ("gpus", "colocate", "each", "says"),
    [
        ({"learner": 0.5}, False, {}, "each of several learner ranks"),
        ({"learner": 0}, True, {}, "each of several learner ranks"),
        ({"rollout": 2}, False, {"rollout": 4}, "tensor_parallel_size is 4"),
        ({"rollout": 0.7, "reward": 0.5}, True, {}, "cannot have 1.2 of it"),
    ],
)
def test_shares_that_cannot_be_are_refused(gpus, colocate, each, says):
    with pytest.raises(BadInput, match=says):
        plan(ClusterConfig(colocate=colocate, gpus=gpus), COUNTS, machines(8, 8), each)


def test_rules_need_no_gpu():
    rule = RuleReward(name="a", type="rule", rule="word_share", options={"words": ["a"]})
    assert gpus_each(RolloutConfig(), [rule]) == {"rollout": 1.0, "reward": 0.0}
    found = plan(ClusterConfig(), COUNTS, machines(2), gpus_each(RolloutConfig(), [rule]))
    assert found.share["learner"]["GPU"] == 0.5
    assert "GPU" not in found.share["reward"]


def test_cpu_shares_fit_every_node_and_not_only_their_sum():
    found = plan(ClusterConfig(), {"learner": 1, "rollout": 3, "reward": 1}, machines(0, 0, cpus=2.0))
    for node in (0, 1):
        assert sum(s["CPU"] for s, n in zip(found.slots, found.nodes, strict=True) if n == node) <= 2.0
    assert found.device == "cpu"
    assert set(found.nodes) == {0, 1}


def test_gpus_of_an_unknown_role_are_bad_input():
    job = {"job": "ppo", "cluster": {"gpus": {"critic": 1}}}
    with pytest.raises(BadInput, match=r"cluster.gpus"):
        parse(job, "x")


def test_planning_needs_no_ray():
    code = "import sys, rlhf_ray.actors.placement; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
