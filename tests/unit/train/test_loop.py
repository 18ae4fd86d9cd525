"""The seconds of a step."""

import pytest

from rlhf_ray.train import loop
from rlhf_ray.train.loop import StageTimer


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


def spend(timer, clock, **seconds):
    """Stages that take this long, one after the other."""
    for name, duration in seconds.items():
        with timer.stage(name):
            clock.now += duration


def test_a_stage_adds_up_and_the_first_evaluation_is_no_part_of_the_step(clock):
    timer = StageTimer()
    spend(timer, clock, rollout=5, evaluate=30)
    spend(timer, clock, rollout=1, learn=3)
    clock.now += 2  # what no stage times
    assert timer.seconds == {"rollout": 6, "evaluate": 30, "learn": 3}
    assert timer.step_seconds() == 11


def test_a_checkpoint_is_in_the_next_steps_line_under_a_name_that_says_so(clock):
    timer = StageTimer()
    spend(timer, clock, checkpoint=4)
    timer.start()
    spend(timer, clock, rollout=1)
    assert timer.metrics() == {"time/previous_checkpoint": 4, "time/rollout": 1}
    assert timer.step_seconds() == 1


def test_a_step_that_was_cut_short_leaves_nothing(clock):
    timer = StageTimer()
    spend(timer, clock, learn=9)
    with pytest.raises(ValueError, match="a lost rank"), timer.stage("learn"):
        raise ValueError("a lost rank")
    timer.begin()
    spend(timer, clock, learn=1)
    assert (timer.seconds, timer.step_seconds()) == ({"learn": 1}, 1)
