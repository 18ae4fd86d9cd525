"""The plan of devices: which worker gets which GPUs, on which node, and what is refused with what is missing."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.actors.placement import Demand, plan_placement, reserved_devices, worker_demand
from rlhf_ray.actors.slots import fit_slots, largest_share
from rlhf_ray.config import (
    BadInput,
    ClusterConfig,
    FunctionReward,
    LearnerConfig,
    ModelReward,
    RewardsConfig,
    RolloutConfig,
    RuleReward,
    parse,
)

COUNTS = {"learner": 2, "rollout": 2, "reward": 1}


def machines(*gpus, cpus=16.0):
    return [{"CPU": cpus, "GPU": float(n)} if n else {"CPU": cpus} for n in gpus]


def plan_of(config, counts, nodes, **gpus_per_worker):
    return plan_placement(config, Demand(counts=counts, gpus_per_worker=gpus_per_worker), nodes)


def gpus_of(plan):
    return [slot.get("GPU", 0) for slot in plan.slots]


def nodes_of(plan, role):
    return [plan.nodes[slot] for slot in plan.seats[role]]


def test_a_tensor_parallel_worker_owns_its_gpus():
    plan = plan_of(ClusterConfig(colocate=False), COUNTS, machines(7), rollout=2)
    assert gpus_of(plan) == [1, 1, 2, 2, 1]
    assert "2 rollout (2 GPUs each)" in plan.lines()[0]


def test_colocated_workers_share_equal_slots():
    plan = plan_of(ClusterConfig(), COUNTS, machines(2), rollout=1)
    assert gpus_of(plan) == [1, 1]
    assert {role: share["GPU"] for role, share in plan.share.items()} == dict.fromkeys(COUNTS, 0.33)


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
        plan_of(config, COUNTS, machines(gpus), rollout=2)


def test_a_tensor_parallel_group_stays_in_a_node_and_learner_ranks_are_packed():
    plan = plan_of(ClusterConfig(colocate=False), {"learner": 4, "rollout": 2}, machines(4, 4, 4), rollout=4)
    assert len(set(nodes_of(plan, "learner"))) == 1
    assert len(set(nodes_of(plan, "rollout"))) == 2
    assert plan.lines()[1] == "nodes: 2 with 1 rollout; one with 4 learner"
    assert [strategy for strategy, _ in plan.groups] == ["PACK", "PACK"]
    assert plan.groups[0][1] == plan.seats["rollout"]  # what needs a whole node is placed first


def test_enough_gpus_on_the_wrong_nodes_are_refused():
    with pytest.raises(BadInput, match=r"the widest of 4 GPUs of one node, and its nodes have 3 GPUs.*3 GPUs"):
        plan_of(ClusterConfig(colocate=False), {"learner": 1, "rollout": 1}, machines(3, 3), rollout=4)


@pytest.mark.parametrize(("spread", "per_node"), [(False, [0, 4]), (True, [2, 2])])
def test_rollout_workers_fill_nodes_or_go_round_them(spread, per_node):
    config = ClusterConfig(colocate=False, spread=spread)
    plan = plan_of(config, {"learner": 1, "rollout": 4}, machines(4, 4))
    nodes = nodes_of(plan, "rollout")
    assert sorted(nodes.count(n) for n in (0, 1)) == per_node
    strategies = {strategy for strategy, slots in plan.groups if plan.seats["rollout"][0] in slots}
    assert strategies == {"SPREAD" if spread else "PACK"}


def test_fractions_share_a_gpu_and_none_takes_none():
    config = ClusterConfig(colocate=False, gpus={"rollout": 0.5, "reward": 0.25})
    plan = plan_of(config, {"learner": 1, "rollout": 3, "reward": 2}, machines(3))
    assert plan.seats == {"learner": [0], "rollout": [1, 1, 2], "reward": [2, 2]}
    assert gpus_of(plan) == [1, 1, 1]
    without = plan_of(ClusterConfig(colocate=False, gpus={"reward": 0}), COUNTS, machines(4))
    assert gpus_of(without) == [1, 1, 1, 1, 0]
    assert without.device_of("reward") == "cpu"
    assert without.device_of("learner") == "cuda"


def test_shares_of_a_colocated_gpu():
    plan = plan_of(ClusterConfig(gpus={"reward": 0.1}), COUNTS, machines(2))
    assert plan.share["reward"]["GPU"] == 0.1
    assert plan.share["learner"]["GPU"] == plan.share["rollout"]["GPU"] == 0.45


@pytest.mark.parametrize(
    ("gpus", "colocate", "gpus_per_worker", "says"),
    [
        ({"learner": 0.5}, False, {}, "each of several learner ranks"),
        ({"learner": 0}, True, {}, "each of several learner ranks"),
        ({"rollout": 2}, False, {"rollout": 4}, "tensor_parallel_size is 4"),
        ({"rollout": 0.7, "reward": 0.5}, True, {}, "cannot have 1.2 of it"),
    ],
)
def test_shares_that_cannot_be_are_refused(gpus, colocate, gpus_per_worker, says):
    with pytest.raises(BadInput, match=says):
        plan_of(ClusterConfig(colocate=colocate, gpus=gpus), COUNTS, machines(8, 8), **gpus_per_worker)


def test_rules_and_functions_take_no_gpu_and_models_do():
    rule = RuleReward(name="a", type="rule", rule="word_share", options={"words": ["a"]})
    function = FunctionReward(name="b", path="f.py:f")
    model = ModelReward(name="c", type="model", path="m")
    sections = {"learner": LearnerConfig(num_workers=2), "rollout": RolloutConfig(num_workers=2)}
    demand = worker_demand(**sections, rewards=RewardsConfig(terms=[rule, function]))
    assert demand == Demand(counts=COUNTS, gpus_per_worker={"rollout": 1.0, "reward": 0.0})
    plan = plan_placement(ClusterConfig(), demand, machines(2))
    assert plan.share["learner"]["GPU"] == 0.5
    assert "GPU" not in plan.share["reward"]
    assert sum(gpus_of(plan_placement(ClusterConfig(colocate=False), demand, machines(4)))) == 4
    assert worker_demand(rewards=RewardsConfig(terms=[rule, model])) == Demand(counts={"reward": 1})


def test_a_function_may_ask_for_a_gpu():
    rewards = RewardsConfig(terms=[FunctionReward(name="b", path="f.py:f")])
    config = ClusterConfig(colocate=False, gpus={"reward": 1})
    plan = plan_placement(config, worker_demand(rewards=rewards), machines(1))
    assert plan.device_of("reward") == "cuda"


TP2 = {"learner": 5, "rollout": 2, "reward": 3}


def test_a_tensor_parallel_worker_shares_the_gpus_of_learner_ranks():
    plan = plan_of(ClusterConfig(), TP2, machines(2, 4), rollout=2)
    assert gpus_of(plan) == [2, 2, 1]
    assert plan.seats == {"learner": [0, 0, 1, 1, 2], "rollout": [0, 1], "reward": [0, 0, 1]}
    assert plan.guests == {"rollout": [[0, 1], [0, 1]], "reward": [[0], [1], [0]]}
    assert {role: share["GPU"] for role, share in plan.share.items()} == {"learner": 1, "rollout": 2, "reward": 1}
    assert plan.nodes == [1, 1, 0]  # no slot is on two nodes
    assert plan.workers_on_gpu(0) == {"learner": 1, "rollout": 1, "reward": 1}
    assert plan.workers_on_gpu(2) == {"learner": 1}
    devices = reserved_devices(plan, machines(2, 4))
    assert (devices.count, devices.roles["rollout"], devices.roles["learner"]) == (5, (2.0, 2), (1.0, 5))


def test_a_reward_worker_without_a_gpu_is_no_guest():
    plan = plan_of(ClusterConfig(), {"learner": 2, "rollout": 1, "reward": 9}, machines(2), rollout=2, reward=0)
    assert set(plan.guests) == {"rollout"}
    assert plan.device_of("reward") == "cpu"
    assert plan.seats["reward"] == [0] * 9


def test_a_model_of_32b_parameters_is_placed_on_two_nodes():
    plan = plan_of(ClusterConfig(), {"learner": 16, "rollout": 4, "reward": 1}, machines(8, 8), rollout=4, reward=0)
    assert gpus_of(plan) == [4, 4, 4, 4]
    assert nodes_of(plan, "learner") == [0] * 8 + [1] * 8


@pytest.mark.parametrize(
    ("counts", "gpus", "says"),
    [
        ({"learner": 3, "rollout": 2}, {"rollout": 2}, "and 2 rollout workers do not fit.*num_workers = 3"),
        ({"learner": 2, "rollout": 1, "reward": 3}, {"rollout": 2}, "1 rollout and 3 reward workers do not fit"),
        ({"learner": 4, "rollout": 1}, {"rollout": 4}, "widest of 4 GPUs of one node"),
        ({"rollout": 1}, {"rollout": 2}, "needs them for itself: set cluster.colocate=false"),
    ],
)
def test_tensor_parallel_workers_that_find_no_learner_ranks_are_refused(counts, gpus, says):
    with pytest.raises(BadInput, match=says):
        plan_of(ClusterConfig(), counts, machines(2, 2), **gpus)


@pytest.mark.parametrize("width", [1, 2])
def test_rollouts_ahead_of_the_learner_cannot_share_its_gpus(width):
    demand = Demand(counts={"learner": 2, "rollout": 1}, gpus_per_worker={"rollout": width}, ahead=1)
    with pytest.raises(BadInput, match=r"rollout\.ahead = 1 .* set cluster\.colocate=false, .* or rollout\.ahead=0"):
        plan_placement(ClusterConfig(), demand, machines(4))
    plan_placement(ClusterConfig(colocate=False), demand, machines(4))
    if width == 1:
        plan_placement(ClusterConfig(), demand, machines(0))  # on CPUs threads are shared out by the system
        plan_placement(ClusterConfig(gpus={"rollout": 0}), demand, machines(2))
    sections = {"learner": LearnerConfig(), "rollout": RolloutConfig(ahead=2)}
    assert worker_demand(**sections).ahead == 2


def test_threads_are_those_of_the_workers_node_and_not_of_this_machine():
    nodes = [{"CPU": 64.0, "GPU": 2.0}, {"CPU": 6.0, "GPU": 2.0}, {"CPU": 2.0}]
    plan = plan_of(ClusterConfig(), {"learner": 4, "rollout": 4}, nodes)
    assert [plan.threads[slot] for slot in plan.seats["learner"]] == [32, 32, 3, 3]
    assert plan.num_threads == 3
    plan = plan_of(ClusterConfig(colocate=False, spread=True), {"learner": 1, "rollout": 3}, nodes)
    assert {node: plan.threads[slot] for slot, node in enumerate(plan.nodes)} == {0: 64, 1: 3}  # two rollout workers
    assert plan_of(ClusterConfig(num_threads=5), {"learner": 4}, nodes).threads == [5] * 4


def test_cpu_shares_fit_every_node_and_not_only_their_sum():
    plan = plan_of(ClusterConfig(), {"learner": 1, "rollout": 3, "reward": 1}, machines(0, 0, cpus=2.0))
    for node in (0, 1):
        assert sum(slot["CPU"] for slot, n in zip(plan.slots, plan.nodes, strict=True) if n == node) <= 2.0
    assert plan.device == "cpu"
    assert set(plan.nodes) == {0, 1}


def counted_down(groups, slots, nodes):
    """The largest share as the old loop found it: 0.01 less until everything fits."""
    cpus, places = 1.0, None
    while places is None and cpus >= 0.01:
        places = fit_slots(groups, [{"CPU": round(cpus * workers, 4), **slot} for workers, slot in slots], nodes)
        cpus = round(cpus - 0.01, 2)
    return None if places is None else (round(cpus + 0.01, 2), places)


SLOTS = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from([{}, {"GPU": 1.0}, {"GPU": 2.0}])), min_size=1, max_size=8
)
NODES = st.lists(
    st.builds(lambda cpus, gpus: {"CPU": cpus, "GPU": gpus}, st.integers(1, 16), st.integers(0, 4)),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(SLOTS, NODES, st.data())
def test_the_largest_share_is_that_of_a_count_down(slots, nodes, data):
    cut = data.draw(st.integers(0, len(slots)))
    strategies = data.draw(st.tuples(*[st.sampled_from(["PACK", "SPREAD"])] * 2))
    indices = ([*range(cut)], [*range(cut, len(slots))])
    groups = [(strategy, group) for strategy, group in zip(strategies, indices, strict=True) if group]
    share = largest_share(groups, slots, nodes)
    assert (share and (share.cpus, share.nodes)) == counted_down(groups, slots, nodes)


def test_a_smaller_share_may_not_fit_where_a_larger_one_does():
    """Why the share is no binary search: with 0.3 the first slot takes a GPU of the node with one CPU (0.9 of it)."""
    slots, nodes = [(3, {"GPU": 1.0}), *[(1, {"GPU": 1.0})] * 2], [{"CPU": 1.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 1.0}]
    groups = [("PACK", [0]), ("PACK", [1, 2])]
    assert fit_slots(groups, [{"CPU": 0.3 * workers, **slot} for workers, slot in slots], nodes) is None
    share = largest_share(groups, slots, nodes)
    assert (share.cpus, share.nodes) == (0.5, [1, 0, 0])


def test_gpus_of_an_unknown_role_are_bad_input():
    job = {"job": "ppo", "cluster": {"gpus": {"critic": 1}}}
    with pytest.raises(BadInput, match=r"cluster.gpus"):
        parse(job, "x")


def test_planning_needs_no_ray():
    code = "import sys, rlhf_ray.actors.placement; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
