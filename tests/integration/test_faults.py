"""Workers killed with SIGKILL in the middle of a step: the run goes on, and ends where an undisturbed one ends."""

import os
import re
import signal
import time

import psutil
import pytest

from tests.helpers import SHARE, metrics_of, rl_job, weights_of
from tests.integration.test_resume import wait_for

pytestmark = pytest.mark.integration

SLOW = """
import time

def slow(prompts, completions, **columns):
    time.sleep(0.5)
    return [float(len(c)) / 100 for c in completions]
"""


def kill(process, name: str) -> int:
    """SIGKILL to the first actor of a class below ``process``; returns its pid."""
    for _ in range(200):
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name().startswith(f"ray::{name}") or any(f"ray::{name}" in part for part in child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
                return child.pid
        time.sleep(0.05)
    raise AssertionError(f"no {name} to kill")


def test_killed_workers_are_replaced_and_change_nothing(train, train_here, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    prompts = rl_job()["data"]
    job = rl_job(
        num_steps=6,
        checkpoint={"every": 2},
        evaluate={"every": 1, "data": {**prompts, "split": "heldout", "size": 2}},
        rewards={
            "num_workers": 2,
            "terms": [SHARE, {"name": "slow", "type": "function", "path": f"{tmp_path}/slow.py:slow"}],
        },
    )
    job["rollout"] = {**job["rollout"], "num_workers": 2}
    job["learner"] = {**job["learner"], "num_workers": 2}
    train_here(job, tmp_path / "calm")
    process = train(job, tmp_path / "rough", wait=False)
    for lines, victim in ((1, "RolloutWorker"), (2, "RewardWorker"), (3, "LearnerWorker")):
        wait_for(tmp_path / "rough" / "metrics.jsonl", lines, process)
        kill(process, victim)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    for role in ("rollout", "reward"):
        assert re.search(rf"{role} worker \d died and is replaced", out), role
    assert re.search(r"learner worker \d died", out)
    assert "going on from step-" in out
    assert metrics_of(tmp_path / "rough") == metrics_of(tmp_path / "calm")
    assert weights_of(tmp_path / "rough") == weights_of(tmp_path / "calm")
