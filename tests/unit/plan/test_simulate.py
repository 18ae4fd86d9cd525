"""The simulated step: processor sharing by hand numbers, and what ahead, workers and long tails do to the loop."""

import numpy as np
import pytest

from rlhf_ray.plan.simulate import Layout, Simulation, Stages, Step, Work


def stages(chunks, *, annotate=0.0, learn=0.0, sync=0.0, score=0.0, wait=0.0, steps=6):
    return Stages([chunks] * steps, score, wait, annotate, learn, sync)


def steady(found):
    """Seconds of a step in the middle, where nothing begins or ends."""
    return found[len(found) // 2]


def layout(workers, shared=None, cores=1.0, demand=1.0, rewards=1):
    name = shared or "gpu"
    return Layout(
        [shared or f"{name}{i}" for i in range(workers)], [shared or "reward"] * rewards, [shared or "learner"], demand,
        {shared: cores} if shared else {},
    )  # fmt: skip


def test_work_on_one_device_shares_it():
    """3 and 1 seconds on a device of one: the short one ends at 2, the long one at 4; alone on another, 2 take 2."""
    clock, ends = Simulation({}), {}

    def one(name, device, seconds):
        yield Work(device, seconds)
        ends[name] = clock.now

    for name, device, seconds in (("long", "a", 3.0), ("short", "a", 1.0), ("other", "b", 2.0)):
        clock.start(one(name, device, seconds))
    assert clock.run() == pytest.approx(4.0)
    assert ends == pytest.approx({"short": 2.0, "long": 4.0, "other": 2.0})


def test_demand_below_capacity_is_served_at_full_speed():
    clock = Simulation({"cpu": 2.0})

    def one(seconds):
        yield Work("cpu", seconds, 1.0)

    for seconds in (1.0, 2.0, 2.0):  # three threads on two cores until the first ends: 1.5 s; then half a second alone
        clock.start(one(seconds))
    assert clock.run() == pytest.approx(2.5)


def test_a_synchronous_step_is_the_sum_of_its_stages():
    found = Step(stages([2.0], annotate=0.5, learn=1.0, sync=0.25, score=0.1), layout(1), 0).run()
    assert steady(found) == pytest.approx(
        {"rollout": 2.1, "annotate": 0.5, "learn": 1.0, "wait": 0.0, "sync": 0.25, "step": 3.85}
    )


@pytest.mark.parametrize(("generate", "learn"), [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)])
def test_one_step_ahead_hides_the_shorter_stage(generate, learn):
    found = Step(stages([generate], learn=learn, sync=0.5), layout(1), 1).run()
    assert steady(found)["step"] == pytest.approx(max(generate, learn) + 0.5)


def test_ahead_gains_nothing_where_the_device_is_shared():
    times = [steady(Step(stages([2.0], learn=1.0), layout(1, "cpu"), k).run())["step"] for k in (0, 1)]
    assert times == pytest.approx([3.0, 3.0])


def test_workers_share_chunks_and_the_last_one_is_waited_for():
    chunks = [1.0, 1.0, 1.0, 1.0]
    times = [steady(Step(stages(chunks), layout(n), 0).run())["step"] for n in (1, 2, 3, 4)]
    assert times == pytest.approx([4.0, 2.0, 2.0, 1.0])
    cores = [steady(Step(stages(chunks), layout(n, "cpu", 2.0, 2.0), 0).run())["step"] for n in (1, 2, 4)]
    assert cores == pytest.approx([4.0, 4.0, 4.0])  # two threads each on two cores: more workers are no faster


def test_a_long_tail_costs_more_the_more_workers_wait_for_it():
    rng = np.random.default_rng(0)

    def lost(workers):
        chunks = rng.exponential(1.0, (8, 4 * workers)).tolist()
        found = Step(Stages(chunks, 0.0, 0.0, 0.0, 0.0, 0.0), layout(workers), 0).run()
        return sum(s["step"] for s in found) / (np.sum(chunks) / workers)

    assert lost(1) == pytest.approx(1.0)
    assert lost(4) < lost(256)


def test_a_slow_service_is_hidden_by_ahead_and_shared_by_reward_workers():
    slow = {"chunks": [0.5] * 4, "learn": 1.0, "wait": 2.0}
    alone = steady(Step(stages(**slow), layout(4, rewards=4), 0).run())["step"]
    ahead = steady(Step(stages(**slow), layout(4, rewards=4), 1).run())["step"]
    assert alone == pytest.approx(0.5 + 2.0 + 1.0)
    assert ahead < alone - 0.9


def test_thousands_of_workers_are_simulated():
    found = Step(stages([1.0] * 4096, learn=0.5, steps=3), layout(4096), 1).run()
    assert steady(found)["step"] == pytest.approx(1.0)
