"""The benchmarks against a peer still run, with a tiny model; nothing is said about time."""

import json
import subprocess
import sys

import pytest

from tests.benchmarks import workload
from tests.benchmarks.grpo_vs_trl import job as grpo
from tests.benchmarks.ppo_vs_trl import job as ppo
from tests.benchmarks.sides import installed, ours
from tests.benchmarks.supervised_vs_trl import job as supervised
from tests.helpers import ROOT

pytestmark = pytest.mark.integration
VOCAB = 64


@pytest.fixture(autouse=True)
def _at_root(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(workload, "ROOT", tmp_path)


@pytest.mark.parametrize("make", [grpo, pytest.param(ppo, marks=pytest.mark.learning)])
def test_our_side_steps_when_asked(make):
    """Two steps, with the lengths of the workload."""
    tokens = workload.lengths("skewed", workload.QUICK.samples, workload.QUICK.longest).sum()
    with ours(make(workload.QUICK, VOCAB, "float32"), "skewed") as side:
        assert [side.ready["tokens"], side.step()[1]["tokens"]] == [tokens, tokens]


@pytest.mark.learning
def test_our_supervised_side_steps_when_asked():
    """Each step is the same batch, and the loss falls."""
    rows = workload.examples(VOCAB, "reward", 8, 32)
    tree = supervised("reward", workload.QUICK, rows, VOCAB, "float32")
    with ours({**tree, "batch_size": 8, "learner": {"lr": 1e-2}}) as side:
        _, after = side.step()
    losses = [a["metrics"]["loss/bradley_terry"] for a in (side.ready, after)]
    assert losses[1] < losses[0]
    assert after["tokens"] == pytest.approx(side.ready["tokens"])


@pytest.mark.parametrize(("name", "trl"), [("grpo", "1.16"), ("ppo", "1.12"), ("supervised", "1.16")])
def test_against_the_peer(name, trl):
    """Both sides run, compute the same, and a table comes out."""
    if not installed(trl):
        pytest.skip(f"TRL {trl} is not installed; `make bench` does it")
    command = [
        sys.executable,
        "-m",
        f"tests.benchmarks.{name}_vs_trl",
        "--quick",
        "--rounds",
        "1",
        "--vocab",
        str(VOCAB),
    ]
    command += ["--kind", "skewed", "--precision", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    file = ROOT / "build" / "benchmarks" / f"{name}_against_trl.json"
    assert all(row["ratio"] > 0 for row in json.loads(file.read_text())["rows"])


def said(name, *options):
    """What a benchmark of ours alone prints."""
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_drivers_own_work_is_measured():
    """The idle actors and ranks of driver_overhead still fit the loop."""
    assert "driver CPU" in said("driver_overhead", "--samples", "16", "--actors", "1")


@pytest.mark.learning
def test_the_simulation_is_put_beside_real_runs():
    small = ["--workers", "1", "--ahead", "0", "1", "--steps", "5", "--tokens", "8", "--width", "32"]
    assert "1 rollout workers, ahead=1: predicted {" in said("simulated_step", *small)
