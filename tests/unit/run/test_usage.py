"""Usage and cost by hand numbers."""

import json

import pytest

from rlhf_ray.actors.placement import Demand, plan_placement, reserved_devices
from rlhf_ray.config import ClusterConfig
from rlhf_ray.run.usage import Devices, StepUsage, Usage, busy_seconds, read_usage, sum_usage, usage_metrics

# eight GPUs: two learner ranks and three rollout workers of two GPUs each
DEVICES = Devices("GPU", 8.0, {"learner": (1.0, 2), "rollout": (2.0, 3), "reward": (0.0, 1)})
STAGES = {"rollout": 10.0, "annotate": 2.0, "learn": 4.0, "sync": 1.0, "wait": 0.5}
STEP = StepUsage(wall_s=20.0, stages=STAGES, tokens=1000.0, engines_s=24.0, reward=0.5)


def test_a_step_by_hand():
    total = Usage().with_step(DEVICES, STEP, 3.6)
    assert total.device_seconds == 160.0  # eight GPUs, 20 s
    busy = 2 * 24.0 + 2 * (2.0 + 4.0) + 8 * 1.0  # engines, learner, all of them in a sync
    assert busy_seconds(DEVICES, STEP) == total.busy_seconds == busy == 68.0
    assert total.stages == {
        "rollout": 80.0,
        "annotate": 16.0,
        "learn": 32.0,
        "sync": 8.0,
        "wait": 4.0,
        "other": 20.0,
    }
    assert sum(total.stages.values()) == total.device_seconds
    assert total.cost == pytest.approx(0.16)  # 160 s at 3.6 an hour
    values = usage_metrics(total, DEVICES, STEP, 3.6)
    assert values["usage/idle_share"] == pytest.approx(1 - 68 / 160)
    assert values["usage/learn/device_seconds"] == 32.0
    assert values["usage/learn/cost"] == pytest.approx(0.032)
    assert "usage/cost_per_point" not in values  # nothing has risen yet


def test_sums_points_and_resume(tmp_path):
    total = Usage().with_step(DEVICES, STEP, 3.6)
    (tmp_path / "usage.json").write_text(json.dumps(total.to_json()))
    again = read_usage(tmp_path)  # as a restarted run reads it
    later = StepUsage(wall_s=10.0, stages={"learn": 10.0}, tokens=500.0, reward=0.75)
    total = again.with_step(DEVICES, later, 3.6)
    assert (total.steps, total.device_seconds, total.tokens) == (2, 240.0, 1500.0)
    assert total.stages["learn"] == 32.0 + 80.0
    values = usage_metrics(total, DEVICES, later, 3.6)
    assert values["usage/device_seconds"] == 80.0
    assert values["usage/total_device_seconds"] == 240.0
    assert values["usage/device_seconds_per_point"] == pytest.approx(240 / 0.25)
    assert values["usage/cost_per_point"] == pytest.approx(0.24 / 0.25)


def test_what_comes_after_the_last_step_is_no_step():
    total = (
        Usage()
        .with_step(DEVICES, STEP, None)
        .with_step(DEVICES, StepUsage(wall_s=2.0, stages={"checkpoint": 1.5}, tokens=0.0, num_steps=0), None)
    )
    assert (total.steps, total.wall_seconds, total.reward) == (1, 22.0, 0.5)
    assert (total.stages["checkpoint"], total.stages["other"]) == (12.0, 24.0)


def test_without_a_price_nothing_costs_and_the_first_price_holds_for_what_was_before():
    total = Usage().with_step(DEVICES, STEP, None)
    assert total.cost is None
    assert not [name for name in usage_metrics(total, DEVICES, STEP, None) if "cost" in name]
    assert total.with_step(DEVICES, STEP, 3.6).cost == pytest.approx(0.32)
    dearer = Usage().with_step(DEVICES, STEP, 3.6).with_step(DEVICES, STEP, 7.2)
    assert dearer.cost == pytest.approx(0.16 + 0.32)


def test_no_more_is_busy_than_there_is():
    assert busy_seconds(DEVICES, StepUsage(wall_s=1.0, stages={"learn": 1.0}, tokens=0.0, engines_s=100.0)) == 8.0


NODES = [{"CPU": 8.0, "GPU": 8.0}]


@pytest.mark.parametrize(
    ("config", "each", "count", "roles"),
    [  # colocated: turns on two GPUs, each worker has the whole one; a reward model shares the rollouts' turn
        ({}, {}, 2.0, {"learner": (1.0, 2), "rollout": (1.0, 2), "reward": (0.0, 1)}),
        ({"colocate": False}, {}, 5.0, {"learner": (1.0, 2), "rollout": (1.0, 2), "reward": (1.0, 1)}),
        (
            {"colocate": False},
            {"rollout": 2.0, "reward": 0.0},
            6.0,
            {"learner": (1.0, 2), "rollout": (2.0, 2), "reward": (0.0, 1)},
        ),
        ({"device": "cpu", "num_threads": 3}, {}, 6.0, {"learner": (3.0, 2), "rollout": (3.0, 2), "reward": (0.0, 1)}),
        (
            {"device": "cpu", "num_threads": 16},
            {},
            8.0,
            {"learner": (16.0, 2), "rollout": (16.0, 2), "reward": (0.0, 1)},
        ),
    ],
)
def test_devices_of_a_plan(config, each, count, roles):
    demand = Demand(counts={"learner": 2, "rollout": 2, "reward": 1}, gpus_per_worker=each)
    devices = reserved_devices(plan_placement(ClusterConfig(**config), demand, NODES), [{"CPU": 8.0}])
    assert (devices.count, dict(devices.roles)) == (count, roles)
    assert devices.kind == ("CPU" if config.get("device") == "cpu" else "GPU")


def test_costs_of_runs_without_a_price_do_not_add_up():
    priced, free = Usage().with_step(DEVICES, STEP, 3.6), Usage().with_step(DEVICES, STEP, None)
    assert sum_usage([priced, free]).cost is None
    assert sum_usage([priced, priced]).cost == pytest.approx(0.32)
