"""The outer end of a side: starts its process, asks for steps, and times them from here, the same way for all sides."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import workload
from tests.benchmarks.paired import seconds

PEERS = Path("build/peers")


def installed(trl):
    """Whether `make bench` has put this version of TRL into its folder."""
    return (PEERS / f"trl-{trl}" / "trl").is_dir()


class Side:
    """A benchmark's child process. Made ready with one step; then each :meth:`step` is one more, while all others rest."""

    def __init__(self, name, command, path=()):
        self.name = name
        self.log = workload.ROOT / "logs" / f"{name.replace(' ', '-')}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        before = [p for p in [os.environ.get("PYTHONPATH")] if p]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([*path, os.getcwd(), *before]),
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count()),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
            stderr=self.log.open("w"),
        )  # fmt: skip
        self.ready = self._answer()

    def step(self):
        """Seconds of one step, and what the side says about it."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return seconds(self._answer)

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"{self.name} ended; the last of {self.log}:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)

    def close(self):
        """Ends the process in its own way."""
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


@contextlib.contextmanager
def ours(job, kind="equal"):
    """Our side: a job (nested dicts) run by the real driver on real actors, in a run directory that is thrown away."""
    with tempfile.TemporaryDirectory() as run:
        cluster = job.get("cluster", {}) | {"num_threads": os.cpu_count()}
        tree = {**job, "run": {"dir": run, "seed": 0}, "cluster": cluster, "log": {"progress": False}}
        side = Side("ours", ["tests.benchmarks.ours", json.dumps(tree), kind])
        try:
            yield side
        finally:
            side.close()


@contextlib.contextmanager
def peer(name, module, trl, spec):
    """TRL of one version: tests.benchmarks.peers.MODULE with ``spec`` as JSON. Raises RuntimeError for another version."""
    side = Side(name, [f"tests.benchmarks.peers.{module}", json.dumps(spec)], [str(PEERS.absolute() / f"trl-{trl}")])
    try:
        if not side.ready["trl"].startswith(trl):
            raise RuntimeError(f"wanted TRL {trl}, found {side.ready['trl']}")
        yield side
    finally:
        side.close()


def check(name, spec):
    """What our learner computes on the fixed batch of ``spec`` (tests.benchmarks.check)."""
    side = Side("check", ["tests.benchmarks.check", name, json.dumps(spec)])
    side.close()
    return side.ready
