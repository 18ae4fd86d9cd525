"""`rlhf-ray tune` as a user runs it, with input that it refuses."""

import subprocess
import sys

from tests.unit.search.searches import write_job


def test_bad_input_ends_with_exit_code_2_and_one_line(tmp_path):
    file = write_job(tmp_path, objective={})
    line = [sys.executable, "-m", "rlhf_ray", "tune", str(file), f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("rlhf-ray: tune.objective.max_kl: without it the trial that hacks the reward wins")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
