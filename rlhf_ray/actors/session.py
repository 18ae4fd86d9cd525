"""The Ray session of a command: it starts or joins Ray, handles signals, leaves nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray

from .._compat import WORKER_SETUP
from ..config import BadInput, ClusterConfig
from ..run.outcome import Stopped

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entrypoint of a submitted job
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
REPEAT_S = 1.0  # a signal that comes so soon after the first is the same request


class Stop:
    """The handler of the signals that end a command: SIGTERM, SIGINT and SIGHUP.

    A signal raises Stopped, or in a block of :meth:`deferred` it only sets ``requested``, which loops read between
    steps. A second signal raises KeyboardInterrupt. What follows within REPEAT_S is the same request: `timeout` signals
    its command and then the command's process group, systemd sends SIGHUP after SIGTERM.
    """

    def __init__(self) -> None:
        self.requested = False
        self._is_deferred = False
        self._first_s = 0.0

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """In the block a signal only sets ``requested``."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def __call__(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.requested and now - self._first_s >= REPEAT_S:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            _leave_terminal()
        if self.requested:
            return
        self.requested, self._first_s = True, now
        if not self._is_deferred:
            raise Stopped(
                f"stopped by {signal.Signals(number).name}; the same command goes on from its last checkpoint"
            )
        with contextlib.suppress(OSError, RuntimeError):  # no reader is left, or the signal interrupts another print
            print("stopping after this step, with a checkpoint (send the signal again to stop at once)", flush=True)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A Stop that handles SIGTERM, SIGINT and SIGHUP in the block; SIGHUP stays ignored if it is, as under `nohup`."""
    stop = Stop()
    earlier = {number: signal.getsignal(number) for number in SIGNALS}
    if earlier[signal.SIGHUP] == signal.SIG_IGN:
        del earlier[signal.SIGHUP]
    for number in earlier:
        signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """Ray during the block: the cluster of ``config.address`` or RAY_ADDRESS, or else a local one with a token.

    The processes of a local Ray block SIGTERM and SIGHUP, because both may be sent to the whole process group, or to
    all processes of a batch job or service: only this process ends the session. It keeps its own signal handlers.
    environment.authenticate must have run before Ray was imported, so that Ray writes nothing to the user's home.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {}
    if SUBMITTED not in os.environ:  # else Ray would take it for the whole environment and delete the working directory
        options["runtime_env"] = {"worker_process_setup_hook": WORKER_SETUP}
    options |= {"address": address} if address else {"include_dashboard": False, "address": "local"}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    earlier_children = set(psutil.Process().children())
    daemons: list[psutil.Process] = []
    try:
        # Processes that are started in the block inherit the mask; a signal that arrives waits for its end.
        with _private_umask(), contextlib.nullcontext() if address else _blocked({signal.SIGTERM, signal.SIGHUP}):
            try:
                ray.init(
                    logging_level=logging.WARNING, log_to_driver=bool(os.environ.get("RLHF_RAY_WORKER_LOGS")), **options
                )
            finally:
                daemons = [child for child in psutil.Process().children() if child not in earlier_children]
                for number, handler in handlers.items():  # Ray installs a handler of SIGTERM
                    signal.signal(number, handler)
        yield
    finally:
        with _blocked(set(SIGNALS)):
            _shut_down(daemons)


def _shut_down(daemons: list[psutil.Process]) -> None:
    """Disconnects from Ray, and kills the processes of a local one with all that they have started."""
    started: list[psutil.Process] = []
    for daemon in daemons:
        with contextlib.suppress(psutil.NoSuchProcess):
            started += [daemon, *daemon.children(recursive=True)]
    node: Any = ray._private.worker._global_node
    for processes in node.all_processes.values() if node is not None else ():
        for info in processes:  # Ray would send each a SIGTERM, which it blocks, and wait a second
            info.process.terminate = info.process.kill
    ray.shutdown()
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _leave_terminal() -> None:
    """Sends stdout and stderr to /dev/null if they are a terminal: after SIGHUP it is gone, and a print would fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(null, descriptor)
    os.close(null)


@contextlib.contextmanager
def _blocked(numbers: set[signal.Signals]) -> Iterator[None]:
    """Signals of this thread wait for the end of the block; a process that is started in it blocks them for good."""
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


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
