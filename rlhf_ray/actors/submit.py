"""`rlhf-ray submit`: a job file to a cluster through Ray's job API, followed to its end; a stop leaves a checkpoint.

Plain `ray job submit` does the same but for three things: it does not check the job first, its stop kills after three seconds, which
is shorter than a step, and its exit code is 0 or 1.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ..config import BadInput
from .session import check_run_dir

STOPPED = re.compile(r"^rlhf-ray: stopped ", re.MULTILINE)  # what `train` says on its way to exit code 3
ANSWER_S = 60.0  # a node's job agent is up some seconds after the dashboard
KEPT = 4000  # characters of the log that are looked at once the job has ended


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the cluster whose dashboard is at ``address``; by default what Ray's variables say, or the one of this machine.

    Raises BadInput: no cluster there, or none that takes the token.
    """
    if address is not None:
        if "://" not in address:
            raise BadInput(
                f"--address: '{address}' is no URL; give the dashboard's, such as http://{address.split(':')[0]}:8265"
            )
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets the environment win; what is typed should
    try:
        client = JobSubmissionClient(address)
    except ConnectionError as error:
        raise BadInput(f"--address: {error} Is the cluster up, and is this the address of its dashboard?") from None
    except AuthenticationError as error:
        raise BadInput(
            f"the cluster wants another token ({str(error).splitlines()[0]}): give its own in --token-file, RAY_AUTH_TOKEN_PATH, "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from None
    url = urlsplit(client.get_address())
    host = url.hostname or ""
    if os.environ.get("RAY_AUTH_MODE") == "token" and url.scheme == "http" and not _loopback(host):
        hidden = f"https or a tunnel (ssh -L 8265:localhost:8265 {host}) hides it"
        print(f"rlhf-ray: the token goes to {host} unencrypted; {hidden}", file=sys.stderr)
    return client


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def request(
    command: str, job: Any, file: Path, working_dir: Path, overrides: Sequence[str], env: Mapping[str, str]
) -> dict[str, Any]:
    """What the cluster is asked for: `rlhf-ray COMMAND`, a copy of ``working_dir`` without its runs, and time for a stop's checkpoint.

    Raises BadInput: a job file that lies elsewhere, or a run directory that would be lost.
    """
    check_run_dir(job.run.dir, submitted=True)
    root = working_dir.resolve()
    if not root.is_dir():
        raise BadInput(f"--working-dir: no such directory {working_dir}")
    try:
        inside = file.resolve().relative_to(root)
    except ValueError:
        raise BadInput(f"{file} lies outside {root}, which is what the cluster gets; give --working-dir") from None
    patience = {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(job.cluster.deadline_s))}  # Ray kills after 3 s otherwise
    return {
        "entrypoint": shlex.join(["rlhf-ray", command, str(inside), *overrides]),
        "runtime_env": {"working_dir": str(root), "excludes": ["/runs/", "/build/"], "env_vars": patience | dict(env)},
    }


def submit(client: JobSubmissionClient, wanted: dict[str, Any], submission_id: str | None) -> str:
    """Sends a request and returns the submission's id, which makes it safe to send it again where an answer was lost.

    Raises BadInput: a directory that is too large, an id that is taken, no answer.
    """
    name = submission_id or f"rlhf-ray-{secrets.token_hex(8)}"
    deadline, lost = time.monotonic() + ANSWER_S, False
    while True:
        try:
            return client.submit_job(**wanted, submission_id=name)
        except (RuntimeError, ValueError, OSError) as error:
            if lost and "already exists" in str(error):
                return name
            passing = isinstance(error, OSError) or "No available agent" in str(error)
            if passing and time.monotonic() < deadline:
                lost |= isinstance(error, OSError)
                time.sleep(1.0)
                continue
            reason = [line for line in str(error).splitlines() if line.strip()]
            raise BadInput(f"the cluster did not take the job: {reason[-1] if reason else error}") from None


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Prints the job's log until it ends, and returns its exit code: 3 where it was stopped and wrote a checkpoint.

    Ctrl-C or SIGTERM stops the job; a second one raises KeyboardInterrupt and leaves it to its stopping.
    """
    text = asyncio.run(_followed(client, job_id))
    details = client.get_job_info(job_id)
    code = exit_code(details, text)
    if details.status == JobStatus.STOPPED and code != 3:
        print("rlhf-ray: stopped before it had anything to save", file=sys.stderr)
    elif details.status == JobStatus.FAILED and details.driver_exit_code is None:
        reason = (details.message or "for no reason given").strip().splitlines()
        print(f"rlhf-ray: the job failed: {reason[0]}", file=sys.stderr)
    return code


def exit_code(details: JobDetails, log: str) -> int:
    """What `rlhf-ray train` ended with. Ray keeps no exit code of a stopped job; its log says whether a checkpoint was written."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return 3 if STOPPED.search(log) else 1
    return details.driver_exit_code if details.driver_exit_code in (1, 2, 3) else 1


async def _followed(client: JobSubmissionClient, job_id: str) -> str:
    """Prints the log until the job has ended; returns the end of it. A lost connection is taken up again where it broke."""
    log, loop, me = _Log(), asyncio.get_running_loop(), asyncio.current_task()
    asked: list[asyncio.Task[None]] = []

    async def ask() -> None:
        try:
            await asyncio.to_thread(client.stop_job, job_id)
        except (RuntimeError, OSError) as error:
            print(f"rlhf-ray: the cluster did not hear the stop: {error}", file=sys.stderr, flush=True)

    def stop() -> None:
        if asked and me is not None:
            me.cancel()
            return
        print("stopping the job after this step, with a checkpoint (again: leave it to that)", flush=True)
        asked.append(loop.create_task(ask()))

    with _signals(loop, stop):
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


class _Log:
    """What has been shown of a log that is sent from its beginning whenever it is asked for."""

    def __init__(self) -> None:
        self.position = self.shown = 0
        self.end = ""

    def show(self, text: str) -> None:
        """Prints what is new in the piece that begins at ``position``."""
        new = text[max(0, self.shown - self.position) :]
        self.position += len(text)
        self.shown = max(self.shown, self.position)
        self.end = (self.end + new)[-KEPT:]
        print(new, end="", flush=True)


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Any:
    """SIGINT and SIGTERM call ``call`` in the block."""
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
