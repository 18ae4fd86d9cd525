"""Signals that reach more than the driver end a run as one that reaches the driver alone: a checkpoint, exit code 3."""

import os
import pty
import signal
import subprocess
import time

import psutil
import pytest
import yaml

from rlhf_ray.run.reader import read_manifest, read_metrics
from tests.helpers import ROOT, command, rl_job
from tests.integration.test_resume import left_over

pytestmark = pytest.mark.integration
LATER = pytest.mark.learning  # much like the signal to the group: not in CI, so that it stays short


def signal_group(process, number):
    os.killpg(process.pid, number)


def signal_all(process, number):
    """As Slurm and systemd do."""
    leader = psutil.Process(process.pid)
    for member in [*leader.children(recursive=True), leader]:
        member.send_signal(number)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(*before, **options): the command of one and the same endless run, behind the words ``before``, in a session of its own."""
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(rl_job(num_steps=100000)))
    monkeypatch.setenv("RLHF_RAY_TEST", str(tmp_path))  # Ray's processes inherit it

    processes = []

    def run(*before, **options):
        defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        line = [*before, *command(file, tmp_path / "run")]
        processes.append(subprocess.Popen(line, cwd=ROOT, **(defaults | options)))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()  # if a test has failed


def wait_for_steps(run_dir, count, process):
    """Until metrics.jsonl has ``count`` more lines than when this was called."""
    goal = len(read_metrics(run_dir)) + count
    until = time.monotonic() + 120
    while len(read_metrics(run_dir)) < goal:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


def check_stopped(process, run_dir, mark):
    """The run has a checkpoint of its last step, says so, and left no process."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, f"{process.returncode}\n{out}\n{err}"
    assert read_manifest(run_dir)["state"] == "stopped"
    steps = len(read_metrics(run_dir))
    assert (run_dir / "checkpoints" / f"step-{steps:06d}" / "manifest.json").is_file()
    assert left_over(mark) == []
    return steps


@pytest.mark.parametrize(
    "deliveries",
    [
        [(signal_group, signal.SIGTERM)],
        pytest.param([(signal_group, signal.SIGINT), (signal_all, signal.SIGTERM)], marks=LATER),
    ],
    ids=["group", "others"],
)
def test_a_signal_to_the_group_or_to_all_processes_is_one_to_the_driver(start, tmp_path, deliveries):
    run_dir, steps = tmp_path / "run", 0
    for send, number in deliveries:
        process = start()
        wait_for_steps(run_dir, 2, process)
        send(process, number)
        earlier, steps = steps, check_stopped(process, run_dir, str(tmp_path))
        assert steps > earlier  # it went on from the checkpoint


@LATER
def test_timeout_which_signals_its_command_and_then_the_group(start, tmp_path):
    process = start("timeout", "600")
    wait_for_steps(tmp_path / "run", 1, process)
    process.send_signal(signal.SIGTERM)  # `timeout` passes it on as it does when the time is up
    check_stopped(process, tmp_path / "run", str(tmp_path))


@LATER
def test_a_terminal_that_hangs_up(start, tmp_path):
    """SIGHUP comes from the kernel, and nothing can be printed any more."""
    master, slave = pty.openpty()
    process = start("setsid", "--ctty", stdin=slave, stdout=slave, stderr=slave, start_new_session=False)
    os.close(slave)
    while not (tmp_path / "run" / "metrics.jsonl").is_file():
        os.read(master, 65536)
    wait_for_steps(tmp_path / "run", 1, process)
    os.close(master)
    check_stopped(process, tmp_path / "run", str(tmp_path))


def test_a_signal_before_the_first_step_ends_the_start(start, tmp_path):
    process = start()
    while "starting Ray" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(2.0)
    signal_group(process, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, out + err
    assert "stopped by SIGTERM; the same command goes on" in err
    assert read_manifest(tmp_path / "run")["state"] == "stopped"
    assert left_over(str(tmp_path)) == []
