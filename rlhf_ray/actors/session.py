"""The Ray session of a command: start or join, signals, and leaving nothing behind."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from ..config import BadInput, ClusterConfig


class Stop:
    """Turns SIGTERM and SIGINT into a flag that the loops look at between steps; a second signal interrupts at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("stopping after this step, with a checkpoint (send the signal again to stop at once)", flush=True)


@contextlib.contextmanager
def session(config: ClusterConfig) -> Iterator[Stop]:
    """Ray for the time of the block: the cluster of ``address`` or RAY_ADDRESS, else a local one with token authentication.

    environment.authenticate has run before Ray was imported, so that nothing is written to the user's home.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    stop = Stop()
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _private_umask():
            options: dict[str, Any] = (
                {"address": address} if address else {"include_dashboard": False, "address": "local"}
            )
            ray.init(
                logging_level=logging.WARNING, log_to_driver=bool(os.environ.get("RLHF_RAY_WORKER_LOGS")), **options
            )
        for number in before:
            signal.signal(number, stop)  # after Ray, which installs handlers of its own
        yield stop
    finally:
        ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


def check_run_dir(run_dir: str, submitted: bool) -> None:
    """Under `ray job submit` the working directory is a cached copy: only an absolute run.dir outside it will do."""
    path = Path(run_dir)
    if submitted and not path.is_absolute():
        raise BadInput(
            f"run.dir: '{run_dir}' is relative; under `ray job submit` give an absolute path on a shared disk"
        )
    if submitted and re.search(r"/runtime_resources/|/session_(latest|\d{4}-\d\d-\d\d_)", f"{path.resolve()}/"):
        raise BadInput(f"run.dir: '{run_dir}' lies in Ray's session directory, which is not kept; give one outside it")


def check_shared(run_dir: Path) -> None:
    """Writes a file here and reads it on every node. Raises BadInput naming the node that cannot see it."""
    nodes = [n for n in ray.nodes() if n["Alive"]]
    if len(nodes) == 1:
        return
    mark = run_dir / ".shared"
    mark.write_text(token := secrets.token_hex(8))

    @ray.remote(num_cpus=0)
    def read(path: str) -> str:
        return Path(path).read_text() if Path(path).is_file() else ""

    for node in nodes:
        pinned = read.options(label_selector={"ray.io/node-id": node["NodeID"]})
        if ray.get(pinned.remote(str(mark)), timeout=60) != token:
            raise BadInput(f"run.dir: {run_dir} is not visible on node {node['NodeManagerAddress']}; use a shared disk")
    mark.unlink()


@contextlib.contextmanager
def _private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
