"""The seconds of a step, and what follows it in which order."""

import json

import pytest

from rlhf_ray.actors.session import Stop
from rlhf_ray.config import parse
from rlhf_ray.run.directory import RunDir
from rlhf_ray.run.events import EventLog
from rlhf_ray.run.outcome import Stopped
from rlhf_ray.run.usage import Devices, Meter
from rlhf_ray.train import loop
from rlhf_ray.train.loop import StageTimer, StepEnd
from tests.helpers import rl_job


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


@pytest.fixture
def events(tmp_path):
    events = EventLog(tmp_path / "log.jsonl", "run", "ppo")
    yield events
    events.close()


def spend(timer, clock, **seconds):
    """Stages that take this long, one after the other."""
    for name, duration in seconds.items():
        with timer.stage(name):
            clock.now += duration


def test_a_stage_adds_up_and_the_first_evaluation_is_no_part_of_the_step(clock, events):
    timer = StageTimer(events)
    spend(timer, clock, rollout=5, evaluate=30)
    spend(timer, clock, rollout=1, learn=3)
    clock.now += 2  # what no stage times
    assert timer.seconds == {"rollout": 6, "evaluate": 30, "learn": 3}
    assert timer.step_seconds() == 11


def test_a_checkpoint_is_in_the_next_steps_line_under_a_name_that_says_so(clock, events):
    timer = StageTimer(events)
    spend(timer, clock, checkpoint=4)
    timer.start()
    spend(timer, clock, rollout=1)
    assert timer.metrics() == {"time/previous_checkpoint": 4, "time/rollout": 1}
    assert timer.step_seconds() == 1


def test_a_step_that_was_cut_short_leaves_nothing(clock, events):
    timer = StageTimer(events)
    spend(timer, clock, learn=9)
    with pytest.raises(ValueError, match="a lost rank"), timer.stage("learn"):
        raise ValueError("a lost rank")
    timer.begin()
    spend(timer, clock, learn=1)
    assert (timer.seconds, timer.step_seconds()) == ({"learn": 1}, 1)


class Trainer:
    """A training of four steps that only writes down what is asked of it, and how many lines metrics.jsonl has then."""

    def __init__(self, run, stop):
        self.calls, self.run, self.timer = [], run, StageTimer(run.events)
        self.end = StepEnd(
            job=run.job,
            run=run,
            meter=Meter(run, Devices("CPU", 1.0, {}), None),
            timer=self.timer,
            stop=stop,
            watch=lambda step, metrics: self.record(f"watch {step}"),
            evaluate=lambda: self.record("evaluate") or {"evaluate/reward": 1.0},
            save=lambda: self.record("save"),
            progress_line=lambda step, metrics: f"step {step}",
        )

    def record(self, name):
        self.calls.append((name, len(self.lines())))

    def lines(self):
        return [json.loads(line) for line in (self.run.path / "metrics.jsonl").read_text().splitlines()]

    def train(self, step=0):
        self.end.open(step)
        for num_steps_done in range(step + 1, self.run.job.num_steps + 1):
            self.end.finish(num_steps_done, {}, tokens=10.0)


@pytest.fixture
def run(tmp_path):
    options = {"checkpoint": {"every": 3}, "evaluate": {"every": 2}, "run": {"dir": str(tmp_path / "run")}}
    with RunDir(parse(rl_job(num_steps=4, log={"prometheus": False}, **options), "job")) as run:
        yield run


def test_a_step_is_evaluated_then_logged_then_saved_then_shown(run):
    trainer = Trainer(run, Stop())
    trainer.train()
    assert trainer.calls == [
        ("evaluate", 1),
        ("watch 2", 2),
        ("save", 3),
        ("evaluate", 3),
        ("save", 4),
        ("watch 4", 4),
    ]
    assert [line["step"] for line in trainer.lines()] == [0, 1, 2, 3]
    assert ["evaluate/reward" in line for line in trainer.lines()] == [False, True, False, True]
    assert all(line["step/tokens_per_second"] > 0 for line in trainer.lines())


def test_a_run_that_is_told_to_stop_saves_first_and_goes_on_without_a_line_twice(run):
    stop = Stop()
    trainer = Trainer(run, stop)
    stop.requested = True
    with pytest.raises(Stopped, match="after step 1 of 4"):
        trainer.train()
    assert trainer.calls == [("save", 1)]
    continued = Trainer(run, Stop())
    continued.train(step=1)
    assert [line["step"] for line in continued.lines()] == [0, 1, 2, 3]
