"""Training across hosts: raylets in network namespaces, a slow wire, a link that is cut and healed."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.helpers import ROOT, metrics_of, rl_job, run_job, weights_of
from tests.hosts import network
from tests.integration.test_resume import wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
NUM_HOSTS, LATENCY_S = 3, 0.01
CUTS = ((2, 5.0), (5, 25.0))  # after so many steps, seconds: TCP outlives the first, Ray loses actors in the second


@pytest.fixture(scope="module")
def hosts():
    """A network of three hosts with a raylet of four CPUs on each, one Ray cluster; and the address of its head."""
    why = network.missing()
    if why:
        pytest.skip(why)
    net = network.Network(NUM_HOSTS, LATENCY_S)
    address = f"{net.address(0)}:6379"
    processes = []
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as session:
        try:
            for i in range(NUM_HOSTS):
                how = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={session}"]
                line = [str(BIN / "ray"), "start", "--block", "--num-cpus=4", "--disable-usage-stats"]
                line += [f"--node-ip-address={net.address(i)}", *(how if i == 0 else [f"--address={address}"])]
                log = (Path(session) / f"host{i}.log").open("w")
                processes.append(subprocess.Popen(net.command(i, line), stdout=log, stderr=subprocess.STDOUT))
                await_text(Path(session) / f"host{i}.log", "--block", processes[-1])
            yield net, address
        finally:
            for process in reversed(processes):
                end(process)
            net.remove()


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    """The run directory of the same job on one host, whose links nobody cuts."""
    path = tmp_path_factory.mktemp("near")
    (path / "job.yaml").write_text(yaml.safe_dump(job(num_steps=10)))
    run_job(path / "job.yaml", path / "run", "cluster.spread=false")
    return path / "run"


def await_text(file, text, process):
    """Until a file has a text."""
    for _ in range(1200):
        if text in file.read_text():
            return
        assert process.poll() is None, file.read_text()
        time.sleep(0.1)
    raise AssertionError(file.read_text())


def end(process):
    """Ends a process and all below it."""
    children = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    for child in [*psutil.wait_procs(children, timeout=20)[1]]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def job(num_steps):
    """Two learner ranks and three rollout workers.

    With four CPUs a host they cannot share one, and two hosts have room for all.
    """
    tree = rl_job(num_steps=num_steps, checkpoint={"every": 2})
    tree["cluster"] = {**tree["cluster"], "spread": True, "num_threads": 1, "deadline_s": 300}
    tree["learner"] = {**tree["learner"], "num_workers": 2}
    tree["rollout"] = {**tree["rollout"], "num_workers": 3}
    return tree


def start(hosts, file, run_dir):
    """The job, driven from the first host."""
    net, address = hosts
    line = [
        str(BIN / "python"),
        "-m",
        "rlhf_ray",
        "train",
        str(file),
        f"run.dir={run_dir}",
        f"cluster.address={address}",
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(net.command(0, line), stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=dict(os.environ))


def test_training_goes_on_when_links_are_cut_and_healed(hosts, near, tmp_path):
    """And ends where a run on one host ends."""
    net, _ = hosts
    trips = [net.round_trip_s(0, i) for i in range(1, NUM_HOSTS)]
    assert all(trip > 2 * LATENCY_S * (i + 1) for i, trip in enumerate(trips))
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job(num_steps=10)))
    process = start(hosts, file, tmp_path / "far")
    for lines, seconds in CUTS:
        wait_for(tmp_path / "far" / "metrics.jsonl", lines, process)
        for state in ("down", "up"):  # of all hosts but the first, for Ray may leave one of them without a worker
            for host in range(1, NUM_HOSTS):
                net.link(host, state)
            time.sleep(seconds if state == "down" else 0.0)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    placed = re.search(r"nodes: (.*)", out).group(1).split("; ")
    assert len(placed) == NUM_HOSTS
    assert sum("learner" in node for node in placed) == 2
    steps = [json.loads(line)["time/step"] for line in (tmp_path / "far" / "metrics.jsonl").read_text().splitlines()]
    print(f"round trips {[round(1e3 * t) for t in trips]} ms; seconds of the steps: {[round(s, 2) for s in steps]}")
    assert any(s > 4.0 for s in steps)  # the cuts were felt
    assert metrics_of(tmp_path / "far") == metrics_of(near)
    assert weights_of(tmp_path / "far") == weights_of(near)


def test_training_goes_on_without_a_host_that_is_gone(hosts, near, tmp_path):
    """Ray counts a host as dead after some seconds without an answer; its workers move to the hosts that are left."""
    net, _ = hosts
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job(num_steps=10)))
    process = start(hosts, file, tmp_path / "run")
    wait_for(tmp_path / "run" / "metrics.jsonl", 3, process)
    net.link(NUM_HOSTS - 1, "down")
    began = time.monotonic()
    out, err = process.communicate(timeout=600)
    print(f"{time.monotonic() - began:.0f} s from the cut to the end of the run")
    assert process.returncode == 0, out + err
    assert re.search(r"(rollout|learner) worker \d died", out)
    assert metrics_of(tmp_path / "run") == metrics_of(near)
    assert weights_of(tmp_path / "run") == weights_of(near)
