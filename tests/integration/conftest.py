"""Fixtures of the tests that start Ray."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT, command, run_job


@pytest.fixture
def train(tmp_path):
    """train(job, run_dir, *overrides): runs a job given as a dict; wait=False returns the running process."""

    def run(job, run_dir, *overrides, timeout=300, wait=True):
        file = tmp_path / f"{Path(run_dir).name}.yaml"
        file.write_text(yaml.safe_dump(job, sort_keys=False))
        if wait:
            return run_job(file, run_dir, *overrides, timeout=timeout)
        line, pipe = command(file, run_dir, *overrides), subprocess.PIPE
        return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)

    return run
