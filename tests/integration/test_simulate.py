"""The simulated loop of `plan` against the loop that trains: stages in the same order, and the same policy versions."""

import pytest

from rlhf_ray.plan.simulate import Layout, StepWork, simulate_steps
from rlhf_ray.run.reader import read_metrics
from rlhf_ray.run.trajectories import read_batch, trajectory_file
from tests.helpers import rl_job

pytestmark = pytest.mark.integration

NUM_STEPS = 4
OUTSIDE_THE_SIMULATION = {"time/step", "time/evaluate", "time/previous_checkpoint"}


def stages_of_steps(run_dir):
    """The stages of each step, in the order in which they were entered."""
    lines = read_metrics(run_dir)
    timed = [[key for key in line if key.startswith("time/") and key not in OUTSIDE_THE_SIMULATION] for line in lines]
    return [[key.removeprefix("time/") for key in keys] for keys in timed]


def policy_versions(run_dir):
    """The version that generated each step's rollouts."""
    batches = [read_batch(trajectory_file(run_dir, step)) for step in range(NUM_STEPS)]
    return [set(batch.policy_version.tolist()) for batch in batches]


@pytest.mark.parametrize("ahead", [pytest.param(0, marks=pytest.mark.learning), 1])
def test_the_simulated_loop_is_the_loop_that_trains(train_here, tmp_path, ahead):
    job = rl_job(algorithm={"type": "grpo", "group_size": 2}, num_steps=NUM_STEPS)
    job["rollout"] = {**job["rollout"], "ahead": ahead}
    run_dir = tmp_path / "run"
    train_here(job, run_dir)
    work = StepWork(generate=[[1.0, 2.0]] * NUM_STEPS, score=0.1, annotate=0.5, learn=1.0, sync=0.25)
    layout = Layout(rollout=["rollout"], reward=["reward"], learner=["learner"], demand=1.0, capacity={})
    steps = simulate_steps(work, layout, ahead)
    assert stages_of_steps(run_dir) == [[name for name in step.seconds if name != "step"] for step in steps]
    assert policy_versions(run_dir) == [{step.policy_version} for step in steps]
