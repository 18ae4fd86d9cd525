"""Six steps equal three, a stop, and three more in new processes, bit for bit."""

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from rlhf_ray.run.reader import read_manifest
from tests.helpers import TINY, metrics_of, rl_job, weights_of

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("ahead", [pytest.param(0, marks=pytest.mark.learning), 1])  # 1 has all that 0 has
def test_three_and_three_steps_equal_six(train, tmp_path, monkeypatch, ahead):
    job = rl_job(
        checkpoint={"every": 3},
        algorithm={
            "type": "ppo",
            "kl": {"coef": 0.1, "controller": {"type": "adaptive", "target": 0.1, "horizon": 100}},
        },
    )
    job["rollout"] = {**job["rollout"], "ahead": ahead}
    monkeypatch.setenv("RLHF_RAY_TEST", mark := f"{tmp_path}-{ahead}")  # Ray's processes inherit it
    train(job, tmp_path / "whole", "num_steps=6")
    assert left_over(mark) == []
    process = train(job, tmp_path / "parts", "num_steps=6", wait=False)
    wait_for(tmp_path / "parts" / "metrics.jsonl", lines=2, process=process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, out + err
    done = len((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines())
    assert 2 <= done < 6
    before = read_manifest(tmp_path / "parts")
    train(job, tmp_path / "parts", "num_steps=6")
    after = read_manifest(tmp_path / "parts")
    assert after["run_id"] == before["run_id"]
    assert (before["usage"]["steps"], after["usage"]["steps"]) == (done, 6)
    assert after["usage"]["device_seconds"] > before["usage"]["device_seconds"]
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")


def test_preferences_go_on_with_the_starting_models_log_probs(train_here, tmp_path):
    """The reference is the model before the first step, also for a run that was made longer: four steps equal two and two."""
    job = {
        "job": "dpo", "cluster": {"num_threads": 1}, "model": {"init": TINY, "tokenizer": "toy"}, "batch_size": 8,
        "data": {"path": "toy:reviews/pairs", "size": 64}, "max_length": 64, "num_steps": 4, "learner": {"lr": 1e-2},
    }  # fmt: skip
    train_here(job, tmp_path / "whole")
    train_here(job, tmp_path / "parts", "num_steps=2")
    train_here(job, tmp_path / "parts")
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")
    steps = metrics_of(tmp_path / "whole")
    assert abs(steps[0]["preference/margin"]) < 1e-6  # the policy is still its reference
    assert abs(steps[3]["preference/margin"]) > 1e-3


def left_over(mark: str) -> list[str]:
    """Processes, but for this one, that inherited RLHF_RAY_TEST=``mark``; those on their way out get ten seconds."""
    for _ in range(100):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RLHF_RAY_TEST") == mark and process.pid != os.getpid():
                    found.append(" ".join(process.cmdline()))
        if not found:
            break
        time.sleep(0.1)
    return found


def wait_for(path: Path, lines: int, process) -> None:
    """Until a file has so many lines."""
    for _ in range(4000):
        if path.is_file() and len(path.read_text().splitlines()) >= lines:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path} did not get {lines} lines")
