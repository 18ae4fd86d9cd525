"""The simulated step: processor sharing by hand numbers, and what ahead, workers and long tails do to the loop."""

import numpy as np
import pytest

from rlhf_ray.plan.simulate import Environment, Layout, Process, StepWork, simulate_steps


def step_work(chunks, *, steps=6, **seconds):
    """The same chunks in all steps."""
    return StepWork(generate=[chunks] * steps, **seconds)


def middle_step(steps):
    """Seconds of a step in the middle, where nothing begins or ends."""
    return steps[len(steps) // 2].seconds


def layout(workers, shared=None, cores=1.0, demand=1.0, rewards=1):
    return Layout(
        rollout=[shared or f"gpu{i}" for i in range(workers)],
        reward=[shared or "reward"] * rewards,
        learner=[shared or "learner"],
        demand=demand,
        capacity={shared: cores} if shared else {},
    )


def test_work_on_one_device_shares_it():
    """3 and 1 seconds on a device of one: the short one ends at 2, the long one at 4; alone on another, 2 take 2."""
    env, ends = Environment({}), {}

    def one_work(name, device, seconds):
        yield env.work(device, seconds)
        ends[name] = env.now

    for name, device, seconds in (("long", "a", 3.0), ("short", "a", 1.0), ("other", "b", 2.0)):
        Process(one_work(name, device, seconds))
    assert env.run() == pytest.approx(4.0)
    assert ends == pytest.approx({"short": 2.0, "long": 4.0, "other": 2.0})


def test_work_that_begins_later_slows_down_what_runs():
    """2 seconds alone until 1; 1 second more arrives: each runs at half speed, both end at 3."""
    env, ends = Environment({}), {}

    def one_work(name, begin, seconds):
        yield env.work(f"clock of {name}", begin)
        yield env.work("shared", seconds)
        ends[name] = env.now

    Process(one_work("first", 0.0, 2.0))
    Process(one_work("second", 1.0, 1.0))
    env.run()
    assert ends == pytest.approx({"first": 3.0, "second": 3.0})


def test_demand_below_capacity_is_served_at_full_speed():
    env = Environment({"cpu": 2.0})

    def one_work(seconds):
        yield env.work("cpu", seconds)

    for seconds in (1.0, 2.0, 2.0):  # three threads on two cores until the first ends: 1.5 s; then half a second alone
        Process(one_work(seconds))
    assert env.run() == pytest.approx(2.5)


def test_sharing_is_what_small_time_slices_give():
    """Against a naive loop that hands out slices of a millisecond."""
    rng = np.random.default_rng(0)
    seconds, demands = rng.uniform(0.1, 2.0, 12), rng.integers(1, 4, 12)
    env, ends = Environment({"cpu": 5.0}), [0.0] * 12

    def one_work(i):
        yield env.work("cpu", seconds[i], float(demands[i]))
        ends[i] = env.now

    for i in range(12):
        Process(one_work(i))
    env.run()
    remaining, naive, time = seconds.copy(), [0.0] * 12, 0.0
    while (running := remaining > 0).any():
        time += 0.001
        remaining[running] -= 0.001 * min(1.0, 5.0 / demands[running].sum())
        for i in np.flatnonzero(running & (remaining <= 0)):
            naive[i] = time
    assert ends == pytest.approx(naive, abs=0.02)


def test_a_process_waits_for_all_events_that_it_yields():
    env, ends = Environment({}), []

    def parent():
        children = [Process(child(seconds)) for seconds in (1.0, 3.0, 2.0)]
        yield children
        ends.append(env.now)
        yield children  # which have happened
        ends.append(env.now)

    def child(seconds):
        yield env.work(f"device {seconds}", seconds)

    Process(parent())
    env.run()
    assert ends == pytest.approx([3.0, 3.0])


def test_a_synchronous_step_is_the_sum_of_its_stages():
    steps = simulate_steps(step_work([2.0], annotate=0.5, learn=1.0, sync=0.25, score=0.1), layout(1), ahead=0)
    assert middle_step(steps) == pytest.approx(
        {"rollout": 2.1, "annotate": 0.5, "learn": 1.0, "wait": 0.0, "sync": 0.25, "step": 3.85}
    )


@pytest.mark.parametrize(("generate", "learn"), [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)])
def test_one_step_ahead_hides_the_shorter_stage(generate, learn):
    steps = simulate_steps(step_work([generate], learn=learn, sync=0.5), layout(1), ahead=1)
    assert middle_step(steps)["step"] == pytest.approx(max(generate, learn) + 0.5)


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_step_s_is_generated_with_the_version_of_step_s_minus_ahead(ahead):
    steps = simulate_steps(step_work([1.0, 1.0], learn=1.0), layout(2), ahead)
    assert [s.policy_version for s in steps] == [max(0, step - ahead) for step in range(6)]


def test_ahead_gains_nothing_where_the_device_is_shared():
    seconds = [middle_step(simulate_steps(step_work([2.0], learn=1.0), layout(1, "cpu"), k))["step"] for k in (0, 1)]
    assert seconds == pytest.approx([3.0, 3.0])


def test_workers_share_chunks_and_the_last_one_is_waited_for():
    work = step_work([1.0, 1.0, 1.0, 1.0])
    own = [middle_step(simulate_steps(work, layout(n), 0))["step"] for n in (1, 2, 3, 4)]
    assert own == pytest.approx([4.0, 2.0, 2.0, 1.0])
    shared = [middle_step(simulate_steps(work, layout(n, "cpu", 2.0, 2.0), 0))["step"] for n in (1, 2, 4)]
    assert shared == pytest.approx([4.0, 4.0, 4.0])  # two threads each on two cores: more workers are no faster


def test_a_long_tail_costs_more_the_more_workers_wait_for_it():
    rng = np.random.default_rng(0)

    def relative_seconds(workers):
        """Seconds over what they would be if no worker ever waited for another."""
        chunks = rng.exponential(1.0, (8, 4 * workers)).tolist()
        steps = simulate_steps(StepWork(generate=chunks), layout(workers), 0)
        return sum(s.seconds["step"] for s in steps) / (np.sum(chunks) / workers)

    assert relative_seconds(1) == pytest.approx(1.0)
    assert relative_seconds(4) < relative_seconds(256)


def test_a_slow_service_is_hidden_by_ahead_and_shared_by_reward_workers():
    work = step_work([0.5] * 4, learn=1.0, score_wait=2.0)
    synchronous = middle_step(simulate_steps(work, layout(4, rewards=4), 0))["step"]
    ahead = middle_step(simulate_steps(work, layout(4, rewards=4), 1))["step"]
    assert synchronous == pytest.approx(0.5 + 2.0 + 1.0)
    assert ahead < synchronous - 0.9


def test_thousands_of_workers_are_simulated():
    steps = simulate_steps(step_work([1.0] * 4096, learn=0.5, steps=3), layout(4096), 1)
    assert middle_step(steps)["step"] == pytest.approx(1.0)
