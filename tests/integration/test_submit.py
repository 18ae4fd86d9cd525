"""`ray job submit` and `rlhf-ray submit` to two raylets with token authentication, as cluster/README.md has it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from tests.helpers import ROOT, TINY, rl_job

pytestmark = pytest.mark.integration

BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a user with two raylets of their own, a token and an empty home."""
    home = tmp_path_factory.mktemp("home")
    dashboard, gcs = free_port(), free_port()
    env = {**os.environ, "HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}
    env["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    start_env = {k: v for k, v in env.items() if k != "RAY_ADDRESS"}
    nodes = []

    def start(*options):
        line = ["ray", "start", "--block", "--num-cpus=2", "--disable-usage-stats", *options]
        line.append(f"--dashboard-agent-listen-port={free_port()}")  # two raylets of one machine cannot share it
        nodes.append(subprocess.Popen(line, env=start_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return nodes[-1]

    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as session:
        ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={session}"]
        await_dashboard(env["RAY_ADDRESS"], start("--head", *ports))
        start(f"--address=127.0.0.1:{gcs}")
        yield env, home
        children = [child for node in nodes for child in psutil.Process(node.pid).children(recursive=True)]
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(timeout=60)
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


def submit(env, *arguments, command="train"):
    line = ["ray", "job", "submit", f"--working-dir={ROOT}", "--", "rlhf-ray", command, *arguments]
    for _ in range(20):  # the node's job agent is up some seconds after the dashboard
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=600, check=False)
        if "No available agent" not in done.stderr:
            break
        time.sleep(2.0)
    return done


def two_nodes(**changes):
    job = rl_job(**changes)
    job["cluster"] = {**job["cluster"], "spread": True}
    job["rollout"] = {**job["rollout"], "num_workers": 2}
    return job


def one_learner(**changes):
    """A job of two processes, its driver's and the learner's, which starts sooner than RL."""
    model = {"init": TINY, "tokenizer": "toy"}
    job = {
        "job": "sft",
        "model": model,
        "data": {"path": "toy:reviews/sft", "size": 64},
        "batch_size": 8,
        "max_length": 64,
    }
    return {**job, "cluster": {"num_threads": 1}, "num_steps": 2, **changes}


def followed(env, directory, *arguments):
    """`rlhf-ray submit job.yaml` in a directory, as a running process."""
    line = [f"{BIN}/rlhf-ray", "submit", "job.yaml", "--address", env["RAY_ADDRESS"], *arguments]
    env = {**{k: v for k, v in env.items() if k != "RAY_ADDRESS"}, "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=directory, env=env, stdout=pipe, stderr=pipe, text=True)


def test_a_submitted_job_trains_and_leaves_nothing(cluster, tmp_path):
    env, home = cluster
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(two_nodes()))
    done = submit(env, str(tmp_path / "job.yaml"), f"run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    assert "nodes: one with " in done.stdout  # a worker in each raylet
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


def test_ctrl_c_stops_a_followed_job_with_a_checkpoint(cluster, tmp_path):
    """Ray's own stop kills after three seconds; this one waits for the step and its checkpoint: exit code 3."""
    env, _ = cluster
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(one_learner(num_steps=1000)))
    job = followed(env, tmp_path, f"run.dir={tmp_path}/run")
    for line in job.stdout:
        if "step 1/1000" in line:
            job.send_signal(signal.SIGINT)
            break
    out, err = job.communicate(timeout=120)
    assert job.returncode == 3, out + err
    assert "rlhf-ray: stopped after step " in out
    assert out.count("step 2/1000") <= 1, "the log was printed again"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "stopped"
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert (checkpoint / "manifest.json").is_file()


@pytest.mark.learning
def test_a_submitted_search_reaches_its_end(cluster, tmp_path):
    """Its trials run on both raylets, each of which unpacks the working directory anew, under the driver that stands in it."""
    env, _ = cluster
    heldout = {"path": "toy:reviews/sft", "split": "heldout", "size": 16}
    space = {"learner.lr": {"type": "grid", "values": [1e-3, 2e-3, 3e-3, 4e-3]}}
    objective = {"metric": "-loss/cross_entropy"}
    tune = {"space": space, "num_samples": 1, "max_concurrent": 4, "objective": objective}
    job = one_learner(evaluate={"every": 1, "data": heldout}, tune=tune)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    done = submit(env, str(tmp_path / "job.yaml"), f"run.dir={tmp_path}/run", command="tune")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert [t["state"] for t in found["trials"]] == ["finished"] * 4


@contextlib.contextmanager
def flaky(port, seconds):
    """A port that leads to ``port`` and cuts every connection after some seconds."""

    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                near, far = server.accept()[0], socket.create_connection(("127.0.0.1", port))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()
                cuts.append(
                    threading.Timer(seconds, lambda ends=(near, far): [e.shutdown(socket.SHUT_RDWR) for e in ends])
                )
                cuts[-1].start()

    cuts = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        for cut in cuts:
            cut.cancel()


@pytest.mark.learning
def test_a_log_survives_its_connection_and_the_exit_code_is_the_jobs(cluster, tmp_path):
    env, _ = cluster
    file, run = tmp_path / "job.yaml", f"run.dir={tmp_path}/run"
    file.write_text(yaml.safe_dump(one_learner(num_steps=300)))
    with flaky(int(env["RAY_ADDRESS"].rsplit(":", 1)[1]), 2.0) as port:
        job = followed({**env, "RAY_ADDRESS": f"http://127.0.0.1:{port}"}, tmp_path, run)
        out, err = job.communicate(timeout=300)
    assert job.returncode == 0, out + err
    steps = [line for line in out.splitlines() if line.startswith("step ")]
    assert len(steps) == len(set(steps)) == 300, out

    job = followed(env, tmp_path, run, "learner.lr=0.5")  # the cluster refuses it: another config's directory
    out, err = job.communicate(timeout=300)
    assert job.returncode == 2, out + err
    assert "holds a run with another config" in out

    job = followed(env, tmp_path, run, "--no-wait", "--submission-id=mine")
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, out + err
    assert out.startswith("submitted mine: ray job logs -f mine --address ")
    job = followed(env, tmp_path, run, "--no-wait", "--submission-id=mine")
    _, err = job.communicate(timeout=60)
    assert job.returncode == 2
    assert "the cluster did not accept the job" in err
    ended = subprocess.run(
        ["ray", "job", "logs", "-f", "mine"], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert "finished already, nothing to do" in ended.stdout + ended.stderr

    job = followed({k: v for k, v in env.items() if not k.startswith("RAY_AUTH")}, tmp_path, run)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 2
    assert "the cluster rejects the token" in err


STAND_INS = {
    "scontrol": """[ "$1" = show ] && printf '127.0.0.1\\n127.0.0.1\\n' || echo "$@" >> "$REQUEUED\"""",
    # two raylets of one machine cannot share the port of the job agent
    "srun": """shift 5; [[ "$*" != "ray start --address"* ]] || set -- "$@" "$AGENT"; exec "$@\"""",
}


@pytest.mark.learning
def test_the_slurm_script_trains_on_two_raylets_and_is_queued_again_when_its_time_is_up(tmp_path):
    """scontrol and srun are stand-ins that run everything here; the rest is real."""
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(one_learner(num_steps=100000)))
    places = [str(tmp_path / "bin"), str(BIN), os.environ["PATH"]]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PATH": os.pathsep.join(places)}
    env |= {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "two",
        "RAY_PORT": str(free_port()),
        "REQUEUED": str(tmp_path / "again"),
    }
    env["AGENT"] = f"--dashboard-agent-listen-port={free_port()}"
    line = ["bash", str(ROOT / "cluster" / "slurm.sh"), "job.yaml", f"run.dir={tmp_path}/run"]
    script = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out = ""
    for text in script.stdout:
        out += text
        if "step 1/" in text:
            assert (tmp_path / ".ray-token-7").stat().st_mode & 0o777 == 0o600
            script.terminate()
            break
    out += script.communicate(timeout=120)[0]
    assert script.returncode == 3, out
    assert (tmp_path / "again").read_text() == "requeue 7\n"
    assert not (tmp_path / ".ray-token-7").exists()
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/manifest.json"))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["resources"]["CPU"] == 2 * os.cpu_count()
