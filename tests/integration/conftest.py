"""Fixtures of the tests that start Ray: one that all share, and jobs on it or in processes and sessions of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml

from rlhf_ray.actors.group import WorkerGroup
from rlhf_ray.cli import main
from tests.helpers import ROOT, command, run_job

CLUSTER = """
import ray
print(ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False).address_info["gcs_address"], flush=True)
input()
"""


@pytest.fixture(scope="session")
def address():
    """The address of a Ray that all tests share that need no session of their own."""
    holder = subprocess.Popen([sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield holder.stdout.readline().strip()
    holder.communicate("\n", timeout=60)


@pytest.fixture
def train_here(address, tmp_path):
    """train_here(job, run_dir, *overrides): runs a job, given as a dict, in this process on the shared Ray."""

    def run(job, run_dir, *overrides):
        file = tmp_path / f"{Path(run_dir).name}.yaml"
        file.write_text(yaml.safe_dump(job, sort_keys=False))
        assert main(["train", str(file), f"run.dir={run_dir}", f"cluster.address={address}", *overrides]) == 0

    return run


@pytest.fixture
def train(tmp_path):
    """train(job, run_dir, *overrides): runs a job, given as a dict, in a process of its own; wait=False returns the running process."""

    def run(job, run_dir, *overrides, timeout=300, wait=True):
        file = tmp_path / f"{Path(run_dir).name}.yaml"
        file.write_text(yaml.safe_dump(job, sort_keys=False))
        if wait:
            return run_job(file, run_dir, *overrides, timeout=timeout)
        line, pipe = command(file, run_dir, *overrides), subprocess.PIPE
        return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)

    return run


@pytest.fixture(scope="module")
def ray_here():
    """A Ray session of four CPUs that the module's test process starts itself: for tests of actors without a job."""
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def start_group(ray_here):
    """start_group(role, class, count, **arguments): a WorkerGroup whose actors end with the test."""
    groups = []

    def start(role, cls, count, **arguments):
        options = {"num_cpus": 0, "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}}
        group = WorkerGroup(
            role,
            cls,
            count,
            arguments=lambda index: arguments,
            options=lambda index: options,
            deadline_s=60.0,
            max_restarts=3,
        )
        groups.append(group)
        return group

    yield start
    for group in groups:
        group.kill()
