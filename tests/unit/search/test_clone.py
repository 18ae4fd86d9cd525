"""Clones: which checkpoint is copied, what of it changes, and in which directory a trial runs."""

import json
from pathlib import Path

import pytest

from rlhf_ray.config import BadInput, parse
from rlhf_ray.run.checkpoint import Checkpoints
from rlhf_ray.search.clone import Pointer, assign_run_dir, clone_checkpoint
from rlhf_ray.search.trial import last_evaluation
from tests.helpers import rl_job
from tests.unit.search.searches import HELDOUT


@pytest.fixture
def job():
    return parse(rl_job(evaluate=HELDOUT), "job")


@pytest.fixture
def donor(tmp_path):
    """A run directory that wrote checkpoints at steps 2, 4 and 6, and keeps two."""
    run_dir = tmp_path / "trials" / "a_0"
    checkpoints = Checkpoints(run_dir / "checkpoints", 2)
    for step in (2, 4, 6):

        def fill(directory: Path, step=step) -> None:
            (directory / "learner").mkdir()
            (directory / "learner" / "shard").write_text(f"weights of step {step}")

        checkpoints.write(step, fill, {"step": step, "kl_coef": 0.05, "rollouts": {}})
    lines = [json.dumps({"step": i, "evaluate/reward": i}) + "\n" for i in range(4)]
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    return run_dir


@pytest.mark.parametrize(("asked", "cloned"), [(4, 4), (2, 6)])  # step 2 is removed: the newest is as good
def test_a_clone_holds_the_donors_checkpoint_and_its_own_coefficient(tmp_path, donor, job, asked, cloned):
    run_dir = tmp_path / "trials" / "b_1-1"
    run_dir.mkdir(parents=True)
    clone_checkpoint(donor, asked, run_dir, job, {"algorithm.kl.coef": 0.2})
    checkpoint = Checkpoints(run_dir / "checkpoints", 2).latest()  # which verifies sizes and hashes
    assert checkpoint.name == f"step-{cloned:06d}"
    assert (checkpoint / "learner" / "shard").read_text() == f"weights of step {cloned}"
    assert json.loads((checkpoint / "state.json").read_text())["kl_coef"] == 0.2
    assert last_evaluation(run_dir)["evaluate/reward"] == 3


def test_a_donor_without_a_checkpoint_is_refused(tmp_path, job):
    (tmp_path / "b_1").mkdir()
    with pytest.raises(BadInput, match="no checkpoint to clone"):
        clone_checkpoint(tmp_path / "nobody", 2, tmp_path / "b_1", job, {})


def test_each_clone_of_a_trial_has_a_run_directory(tmp_path):
    own = Pointer(trial="a_1", run="a_1", step=2)
    other = Pointer(trial="a_0", run="a_0", step=4)
    assert assign_run_dir(tmp_path, "a_1", None, {}) == (tmp_path / "a_1", None)
    (tmp_path / "a_1").mkdir()
    (tmp_path / "a_10").mkdir()  # another trial's
    assert assign_run_dir(tmp_path, "a_1", own, {}) == (tmp_path / "a_1", None)
    assert assign_run_dir(tmp_path, "a_1", other, {"x": 1}) == (tmp_path / "a_1-1", other)
    # the clone failed before it reported
    assert assign_run_dir(tmp_path, "a_1", other, {"x": 1}) == (tmp_path / "a_1-1", other)
    assert assign_run_dir(tmp_path, "a_1", other, {"x": 2}) == (tmp_path / "a_1-2", other)
    own_clone = Pointer(trial="a_1", run="a_1-1", step=2)
    assert assign_run_dir(tmp_path, "a_1", own_clone, {}) == (tmp_path / "a_1-1", None)
    assert assign_run_dir(tmp_path, "a_1", None, {}) == (tmp_path / "a_1-2", None)
