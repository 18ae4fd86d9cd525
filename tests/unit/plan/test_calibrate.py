"""A run's measured seconds as factors of the next prediction."""

import pytest

from rlhf_ray.config import parse
from rlhf_ray.plan import calibrate, forecast
from rlhf_ray.plan.hardware import this_machine
from rlhf_ray.plan.requirements import Models, Setting
from rlhf_ray.plan.shape import shape_of
from tests.helpers import TINY, rl_job


def small_rl(**changes):
    return parse(rl_job(algorithm={"type": "grpo", "group_size": 4}, **changes), "job")


def test_a_run_calibrates_the_next_prediction():
    """A run that was twice as slow in everything as predicted gives factors of 2, and with them its own seconds."""
    job = small_rl()
    on = this_machine()
    s = shape_of({**TINY, "vocab_size": 100})
    given = Setting(Models(s), on, forecast.lengths(job))
    where = forecast.layout(forecast.placed(job, on), on)
    said = calibrate.predicted(job, given, where)
    lines = [{f"time/{name}": 2 * seconds for name, seconds in said.items()}] * 3
    found = calibrate.factors(job, given, where, lines)
    assert vars(found) == pytest.approx({"rollout": 2, "annotate": 1, "learn": 2, "sync": 2}, rel=0.02)
    again = calibrate.predicted(job, Setting(Models(s), on, given.lengths, found), where)
    assert again["step"] == pytest.approx(2 * said["step"], rel=0.02)
