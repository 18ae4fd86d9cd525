"""The loop in this process, its actors real: GPUs shared in turns, bfloat16, evaluations, what is written when."""

import dataclasses
from types import SimpleNamespace

import pytest
import ray

from rlhf_ray.config import apply_overrides, parse
from rlhf_ray.driver.experience import Order
from rlhf_ray.driver.rl import RL
from rlhf_ray.driver.rl_setup import setup
from rlhf_ray.driver.rundir import RunDir
from rlhf_ray.driver.session import Stop
from tests.helpers import metrics_of, rl_job

pytestmark = pytest.mark.integration

HELDOUT = {"path": "toy:reviews/prompts", "split": "heldout", "size": 4, "max_prompt_tokens": 32}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A job of two steps, learner and engine in bfloat16, evaluated after each, as where workers share a GPU in turns."""
    path = tmp_path_factory.mktemp("run")
    changes = ["model.dtype=bfloat16", "rollout.engine.dtype=bfloat16", "evaluate.every=1", "checkpoint.every=1"]
    changes += ["cluster.deadline_s=300"]
    job = parse(apply_overrides(rl_job(evaluate={"data": HELDOUT}), [f"run.dir={path}", *changes]), "job")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    held = RunDir(job)
    try:
        with setup(job, path, print) as made:
            loop = RL(job, held, dataclasses.replace(made, time_shared=True), Stop())
            loop.train()
            yield SimpleNamespace(path=path, job=job, loop=loop)
    finally:
        held.close()
        ray.shutdown()


def test_a_job_runs_where_rollout_workers_sleep_while_the_learner_works(done):
    steps = metrics_of(done.path)
    assert [line["step"] for line in steps] == [0, 1]
    with pytest.raises(RuntimeError, match="asleep"), done.loop.phase("learn"):
        done.loop.collector.collect(Order(9, 2, [0], 0, 1), done.loop.setup.prompts)
