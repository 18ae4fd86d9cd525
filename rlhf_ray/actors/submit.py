"""`rlhf-ray submit`: sends a job file to a cluster through Ray's job API, and follows the job to its end.

It differs from `ray job submit` in three ways. The job is checked first. A stop waits for a checkpoint instead of
killing the job after three seconds. The exit code is that of `rlhf-ray train` instead of 0 or 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ..config import BadInput, Job
from .session import check_run_dir

STOPPED = re.compile(r"^rlhf-ray: stopped ", re.MULTILINE)  # what `train` prints before it ends with exit code 3
SUBMIT_TIMEOUT_S = 60.0  # a node's job agent starts some seconds after the dashboard
LOG_END = 4000  # characters at the end of the log that `exit_code` searches


def connect_client(address: str | None) -> JobSubmissionClient:
    """A client of the cluster whose dashboard is at ``address``; None: that of Ray's variables, or this machine's.

    Raises BadInput if there is no cluster, or if it rejects the token.
    """
    if address is not None:
        if "://" not in address:
            raise BadInput(
                f"--address: '{address}' is no URL; give that of the dashboard, http://{address.split(':')[0]}:8265"
            )
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray would prefer the variable to the argument
    try:
        client = JobSubmissionClient(address)
    except ConnectionError as error:
        raise BadInput(f"--address: {error} Is the cluster up, and is this the address of its dashboard?") from None
    except AuthenticationError as error:
        raise BadInput(
            f"the cluster rejects the token ({str(error).splitlines()[0]}); give the cluster's token in --token-file, "
            "RAY_AUTH_TOKEN_PATH, RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from None
    url = urlsplit(client.get_address())
    host = url.hostname or ""
    if os.environ.get("RAY_AUTH_MODE") == "token" and url.scheme == "http" and not _is_loopback(host):
        remedy = f"use https or a tunnel (ssh -L 8265:localhost:8265 {host})"
        print(f"rlhf-ray: the token goes to {host} unencrypted; {remedy}", file=sys.stderr)
    return client


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def make_request(
    command: str, job: Job, file: Path, working_dir: Path, overrides: Sequence[str], env: Mapping[str, str]
) -> dict[str, Any]:
    """The arguments of Ray's submit_job: the command `rlhf-ray COMMAND FILE OVERRIDES` in a copy of ``working_dir``.

    The copy has no runs/ and no build/. A stop waits for ``job.cluster.deadline_s``, long enough for a checkpoint.
    Raises BadInput if ``file`` is outside ``working_dir``, or if the run directory would be lost.
    """
    check_run_dir(job.run.dir, submitted=True)
    root = working_dir.resolve()
    if not root.is_dir():
        raise BadInput(f"--working-dir: no such directory {working_dir}")
    try:
        relative = file.resolve().relative_to(root)
    except ValueError:
        raise BadInput(f"{file} is outside {root}, of which the cluster gets a copy; give --working-dir") from None
    stop_wait = {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(job.cluster.deadline_s))}  # Ray's default is 3 s
    return {
        "entrypoint": shlex.join(["rlhf-ray", command, str(relative), *overrides]),
        "runtime_env": {"working_dir": str(root), "excludes": ["/runs/", "/build/"], "env_vars": stop_wait | dict(env)},
    }


def send_request(client: JobSubmissionClient, request: dict[str, Any], submission_id: str | None) -> str:
    """Sends a request and returns the submission's id. The id makes it safe to send a request again if a reply is lost.

    Raises BadInput if the working directory is too large, the id is taken, or the cluster does not reply in time.
    """
    name = submission_id or f"rlhf-ray-{secrets.token_hex(8)}"
    deadline, reply_lost = time.monotonic() + SUBMIT_TIMEOUT_S, False
    while True:
        try:
            return client.submit_job(**request, submission_id=name)
        except (RuntimeError, ValueError, OSError) as error:
            if reply_lost and "already exists" in str(error):
                return name
            temporary = isinstance(error, OSError) or "No available agent" in str(error)
            if temporary and time.monotonic() < deadline:
                reply_lost |= isinstance(error, OSError)
                time.sleep(1.0)
                continue
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise BadInput(f"the cluster did not accept the job: {lines[-1] if lines else error}") from None


def follow_job(client: JobSubmissionClient, job_id: str) -> int:
    """Prints the job's log until the job ends, and returns its exit code: 3 if it was stopped and wrote a checkpoint.

    Ctrl-C or SIGTERM stops the job. A second signal raises KeyboardInterrupt, and the job goes on stopping.
    """
    log_end = asyncio.run(_follow_log(client, job_id))
    details = client.get_job_info(job_id)
    code = exit_code(details, log_end)
    if details.status == JobStatus.STOPPED and code != 3:
        print("rlhf-ray: stopped before there was a checkpoint to write", file=sys.stderr)
    elif details.status == JobStatus.FAILED and details.driver_exit_code is None:
        reason = (details.message or "Ray gives no reason").strip().splitlines()[0]
        print(f"rlhf-ray: the job failed: {reason}", file=sys.stderr)
    return code


def exit_code(details: JobDetails, log: str) -> int:
    """The exit code of `rlhf-ray train`. Ray keeps none for a stopped job; its log says if there is a checkpoint."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return 3 if STOPPED.search(log) else 1
    return details.driver_exit_code if details.driver_exit_code in (1, 2, 3) else 1


async def _follow_log(client: JobSubmissionClient, job_id: str) -> str:
    """Prints the log until the job has ended, and returns its end. After a lost connection it goes on where it was."""
    log, loop, this_task = _FollowedLog(), asyncio.get_running_loop(), asyncio.current_task()
    stops: list[asyncio.Task[None]] = []

    async def send_stop() -> None:
        try:
            await asyncio.to_thread(client.stop_job, job_id)
        except (RuntimeError, OSError) as error:
            print(f"rlhf-ray: the stop did not reach the cluster: {error}", file=sys.stderr, flush=True)

    def stop() -> None:
        if stops and this_task is not None:
            this_task.cancel()
            return
        print("stopping the job after this step, with a checkpoint (send the signal again to leave)", flush=True)
        stops.append(loop.create_task(send_stop()))

    with _signal_handler(loop, stop):
        try:
            while True:
                log.position = 0
                with contextlib.suppress(RuntimeError, ClientError, OSError):
                    async for text in client.tail_job_logs(job_id):
                        log.show(text)
                with contextlib.suppress(OSError):
                    details = await asyncio.to_thread(client.get_job_info, job_id)
                    if details.status.is_terminal():
                        log.position = 0
                        log.show(await asyncio.to_thread(client.get_job_logs, job_id))
                        return log.end
                await asyncio.sleep(1.0)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


class _FollowedLog:
    """How much of a log has been printed. Ray sends the log from its beginning on every connection.

    ``position`` is where the next piece begins, ``shown`` is how many characters have been printed, ``end`` the last
    of them.
    """

    def __init__(self) -> None:
        self.position = self.shown = 0
        self.end = ""

    def show(self, text: str) -> None:
        """Prints what is new in a piece that begins at ``position``."""
        new = text[max(0, self.shown - self.position) :]
        self.position += len(text)
        self.shown = max(self.shown, self.position)
        self.end = (self.end + new)[-LOG_END:]
        print(new, end="", flush=True)


@contextlib.contextmanager
def _signal_handler(loop: asyncio.AbstractEventLoop, handler: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call ``handler`` during the block."""
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
