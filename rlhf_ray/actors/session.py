"""The Ray session of a command: it starts or joins Ray, handles signals, and leaves nothing behind."""

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

from .._compat import WORKER_SETUP
from ..config import BadInput, ClusterConfig


class Stop:
    """A signal handler for SIGTERM and SIGINT that sets ``requested``, which the loops read between steps.

    A second signal raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("stopping after this step, with a checkpoint (send the signal again to stop at once)", flush=True)


@contextlib.contextmanager
def ray_session(config: ClusterConfig) -> Iterator[Stop]:
    """Ray during the block: the cluster of ``config.address`` or RAY_ADDRESS, or else a local one with a token.

    environment.authenticate must have run before Ray was imported, so that Ray writes nothing to the user's home.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    stop = Stop()
    earlier_handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"runtime_env": {"worker_process_setup_hook": WORKER_SETUP}}
    options |= {"address": address} if address else {"include_dashboard": False, "address": "local"}
    try:
        with _private_umask():
            ray.init(
                logging_level=logging.WARNING, log_to_driver=bool(os.environ.get("RLHF_RAY_WORKER_LOGS")), **options
            )
        for number in earlier_handlers:
            signal.signal(number, stop)  # after ray.init, which installs handlers of its own
        yield stop
    finally:
        ray.shutdown()
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler)


def check_run_dir(run_dir: str, submitted: bool) -> None:
    """Raises BadInput if a job under `ray job submit` would lose its run directory.

    The working directory is a cached copy there, so ``run_dir`` must be absolute and outside Ray's session directory.
    """
    path = Path(run_dir)
    if submitted and not path.is_absolute():
        raise BadInput(
            f"run.dir: '{run_dir}' is relative; under `ray job submit` give an absolute path on a shared disk"
        )
    if submitted and re.search(r"/runtime_resources/|/session_(latest|\d{4}-\d\d-\d\d_)", f"{path.resolve()}/"):
        raise BadInput(f"run.dir: '{run_dir}' is in Ray's session directory, which Ray deletes; give one outside it")


def check_shared(run_dir: Path) -> None:
    """Writes a file to ``run_dir`` and reads it on every node. Raises BadInput with the node that cannot see it."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    file, token = run_dir / ".shared", secrets.token_hex(8)
    file.write_text(token)

    @ray.remote(num_cpus=0)
    def read_text(path: str) -> str:
        return Path(path).read_text() if Path(path).is_file() else ""

    for node in nodes:
        pinned = read_text.options(label_selector={"ray.io/node-id": node["NodeID"]})
        if ray.get(pinned.remote(str(file)), timeout=60) != token:
            raise BadInput(f"run.dir: {run_dir} is not visible on node {node['NodeManagerAddress']}; use a shared disk")
    file.unlink()


@contextlib.contextmanager
def _private_umask() -> Iterator[None]:
    """Files that are made in the block can be read by their owner only."""
    earlier = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(earlier)
