"""Usage and cost by hand numbers."""

import json

import pytest

from rlhf_ray.actors.placement import Demand, plan_placement, reserved_devices
from rlhf_ray.cli import main
from rlhf_ray.config import ClusterConfig
from rlhf_ray.run import usage
from rlhf_ray.run.usage import NOTHING, Devices, Step, add, busy_seconds, metrics

# eight GPUs: two learner ranks and three rollout workers of two GPUs each
THERE = Devices("GPU", 8.0, {"learner": (1.0, 2), "rollout": (2.0, 3), "reward": (0.0, 1)})
STAGES = {"rollout": 10.0, "annotate": 2.0, "learn": 4.0, "sync": 1.0, "wait": 0.5}
STEP = Step(20.0, STAGES, tokens=1000.0, engines_s=24.0, reward=0.5)


def test_a_step_by_hand():
    total = add(NOTHING, THERE, STEP, price=3.6)
    assert total["device_seconds"] == 160.0  # eight GPUs, 20 s
    busy = 2 * 24.0 + 2 * (2.0 + 4.0) + 8 * 1.0  # engines, learner, all of them in a sync
    assert busy_seconds(THERE, STEP) == total["busy_seconds"] == busy == 68.0
    assert total["stages"] == {
        "rollout": 80.0,
        "annotate": 16.0,
        "learn": 32.0,
        "sync": 8.0,
        "wait": 4.0,
        "other": 20.0,
    }
    assert sum(total["stages"].values()) == total["device_seconds"]
    assert total["cost"] == pytest.approx(0.16)  # 160 s at 3.6 an hour
    found = metrics(total, THERE, STEP, 3.6)
    assert found["usage/idle_share"] == pytest.approx(1 - 68 / 160)
    assert found["usage/learn/device_seconds"] == 32.0
    assert found["usage/learn/cost"] == pytest.approx(0.032)
    assert "usage/cost_per_point" not in found  # nothing has risen yet


def test_sums_points_and_resume():
    total = add(NOTHING, THERE, STEP, 3.6)
    again = json.loads(json.dumps(total))  # as a restarted run reads it
    later = Step(10.0, {"learn": 10.0}, tokens=500.0, reward=0.75)
    total = add(again, THERE, later, 3.6)
    assert (total["steps"], total["device_seconds"], total["tokens"]) == (2, 240.0, 1500.0)
    assert total["stages"]["learn"] == 32.0 + 80.0
    found = metrics(total, THERE, later, 3.6)
    assert found["usage/device_seconds"] == 80.0
    assert found["usage/total_device_seconds"] == 240.0
    assert found["usage/device_seconds_per_point"] == pytest.approx(240 / 0.25)
    assert found["usage/cost_per_point"] == pytest.approx(0.24 / 0.25)


def test_what_comes_after_the_last_step_is_no_step():
    total = add(add(NOTHING, THERE, STEP, None), THERE, Step(2.0, {"checkpoint": 1.5}, 0.0, num_steps=0), None)
    assert (total["steps"], total["wall_seconds"], total["reward"]) == (1, 22.0, 0.5)
    assert (total["stages"]["checkpoint"], total["stages"]["other"]) == (12.0, 24.0)


def test_without_a_price_nothing_costs_and_the_first_price_holds_for_what_was_before():
    total = add(NOTHING, THERE, STEP, None)
    assert total["cost"] is None
    assert not [name for name in metrics(total, THERE, STEP, None) if "cost" in name]
    assert add(total, THERE, STEP, 3.6)["cost"] == pytest.approx(0.32)
    dearer = add(add(NOTHING, THERE, STEP, 3.6), THERE, STEP, 7.2)
    assert dearer["cost"] == pytest.approx(0.16 + 0.32)


def test_no_more_is_busy_than_there_is():
    assert busy_seconds(THERE, Step(1.0, {"learn": 1.0}, 0.0, engines_s=100.0)) == 8.0


NODES = [{"CPU": 8.0, "GPU": 8.0}]


@pytest.mark.parametrize(
    ("config", "each", "count", "roles"),
    [  # colocated: turns on two GPUs, each worker has the whole one; a reward model shares the rollouts' turn
        ({}, {}, 2.0, {"learner": (1.0, 2), "rollout": (1.0, 2), "reward": (0.0, 1)}),
        ({"colocate": False}, {}, 5.0, {"learner": (1.0, 2), "rollout": (1.0, 2), "reward": (1.0, 1)}),
        ({"colocate": False}, {"rollout": 2.0, "reward": 0.0}, 6.0, {"learner": (1.0, 2), "rollout": (2.0, 2), "reward": (0.0, 1)}),
        ({"device": "cpu", "num_threads": 3}, {}, 6.0, {"learner": (3.0, 2), "rollout": (3.0, 2), "reward": (0.0, 1)}),
        ({"device": "cpu", "num_threads": 16}, {}, 8.0, {"learner": (16.0, 2), "rollout": (16.0, 2), "reward": (0.0, 1)}),
    ],
)  # fmt: skip
def test_devices_of_a_plan(config, each, count, roles):
    demand = Demand(counts={"learner": 2, "rollout": 2, "reward": 1}, gpus_per_worker=each)
    devices = reserved_devices(plan_placement(ClusterConfig(**config), demand, NODES), [{"CPU": 8.0}])
    assert (devices.count, dict(devices.roles)) == (count, roles)
    assert devices.kind == ("CPU" if config.get("device") == "cpu" else "GPU")


def test_report_shows_a_run_and_a_pipeline(tmp_path, capsys):
    total = add(add(NOTHING, THERE, STEP, 3.6), THERE, Step(10.0, {"learn": 10.0}, 500.0, reward=0.75), 3.6)
    for name in ("sft", "ppo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "usage.json").write_text(json.dumps(total))
    assert main(["report", str(tmp_path / "ppo")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("8 GPUs, 2 steps", "learn │ 112.0 │ 56.00 │ 47% │ 0.1120", "all │ 240.0 │ 120.00 │ 100% │ 0.2400"):
        assert text in shown
    assert "1500 tokens in 30 s" in shown
    assert "a point of reward (+0.250 since the first step): 960 GPU-seconds, cost 0.9600" in shown
    assert main(["report", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "sft │ 240.0 │ 120.00 │ 50% │ 0.2400" in shown
    assert "all │ 480.0 │ 120.00 │ 100% │ 0.4800" in shown


def test_costs_of_runs_without_a_price_do_not_add_up():
    priced, free = add(NOTHING, THERE, STEP, 3.6), add(NOTHING, THERE, STEP, None)
    assert usage.together([priced, free])["cost"] is None
    assert usage.together([priced, priced])["cost"] == pytest.approx(0.32)
