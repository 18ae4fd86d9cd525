"""`ray job submit` to a cluster with token authentication, as the README has it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from tests.helpers import ROOT, rl_job

pytestmark = pytest.mark.integration

BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster(tmp_path):
    """The environment of a user with a head node of their own; their home is empty."""
    home = tmp_path / "home"
    home.mkdir()
    dashboard = free_port()
    env = {**os.environ, "HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}
    env["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as session:
        command = [
            "ray",
            "start",
            "--head",
            "--block",
            "--num-cpus=4",
            "--disable-usage-stats",
            f"--temp-dir={session}",
        ]
        ports = [
            f"--port={free_port()}",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={free_port()}",
        ]
        start_env = {k: v for k, v in env.items() if k != "RAY_ADDRESS"}
        head = subprocess.Popen([*command, *ports], env=start_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        await_dashboard(env["RAY_ADDRESS"], head)
        yield env, home
        children = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        head.wait(timeout=60)
        for child in psutil.wait_procs(children, timeout=20)[1]:
            child.kill()


def await_dashboard(address, head):
    for _ in range(300):
        assert head.poll() is None, head.stdout.read().decode()
        try:
            urllib.request.urlopen(address, timeout=1)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError("no dashboard")


def submit(env, *arguments):
    command = ["ray", "job", "submit", f"--working-dir={ROOT}", "--", "rlhf-ray", "train", *arguments]
    for _ in range(20):  # the node's job agent is up some seconds after the dashboard
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
        if "No available agent" not in done.stderr:
            break
        time.sleep(2.0)
    return done


def test_a_submitted_job_trains_and_leaves_nothing(cluster, tmp_path):
    env, home = cluster
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(rl_job()))
    done = submit(env, str(tmp_path / "job.yaml"), f"run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "finished"
    time.sleep(2.0)
    left = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):  # another user's process, or one that has just ended
            if (process.info["name"] or "").startswith("ray::") and process.environ().get("HOME") == str(home):
                left.append(process.info["name"])
    assert not [name for name in left if "Worker" in name], left
    assert not list(home.rglob("*token*"))

    done = submit(env, str(tmp_path / "job.yaml"), "run.dir=runs/relative")
    assert done.returncode != 0
    assert "'runs/relative' is relative" in done.stdout + done.stderr

    refused = submit({k: v for k, v in env.items() if not k.startswith("RAY_AUTH")}, str(tmp_path / "job.yaml"))
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "token" in refused.stdout + refused.stderr
