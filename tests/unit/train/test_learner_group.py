"""What engine and learner may differ by after a sync."""

import pytest

from rlhf_ray.config import parse, resolve_dtypes
from rlhf_ray.train.learner_group import sync_tolerance
from tests.helpers import rl_job


@pytest.mark.parametrize(("learner", "engine"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_looser_dtype_decides_what_a_sync_may_differ_by(learner, engine):
    job = rl_job()
    job["model"], job["rollout"] = {**job["model"], "dtype": learner}, {**job["rollout"], "engine": {"dtype": engine}}
    assert sync_tolerance(parse(job, "job")) == 0.3
    assert sync_tolerance(resolve_dtypes(parse(rl_job(), "job"), "cpu")) == 1e-3
