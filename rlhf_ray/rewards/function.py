"""User functions in a child process that can be killed: a reward that hangs or crashes takes nothing else with it.

This isolates faults; it is not a sandbox. The child runs with the rights of the reward worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..config import FunctionReward
from .reward import DROPPED, RewardError, Samples, ScorerContext, TermScorer, checked

PROCESS = Path(__file__).with_name("sandbox_process.py")
MAX_PRINTED = 10_000_000  # bytes of a file of prints; a function that prints more than that loses the oldest


class Failed(Exception):
    """One call failed; it may be tried again."""


class UserFunction(TermScorer):
    """``path/to/file.py:function``, called through a child process that is started once and restarted after a failure.

    What it prints is appended to the file NAME.txt in the context's ``prints``, if there is one. Raises RewardError at
    once if the file or the function is not there or cannot be imported.
    """

    def __init__(self, term: FunctionReward, context: ScorerContext) -> None:
        self.term = term
        self.prints = None if context.prints is None else context.prints / f"{term.name}.txt"
        self.file, _, self.function = term.path.rpartition(":")
        self.process: subprocess.Popen[bytes] | None = None
        if not Path(self.file).is_file():
            raise RewardError(f"reward '{term.name}': no such file {self.file}")
        try:
            self._start()
        except Failed as error:
            raise RewardError(f"reward '{term.name}' ({term.path}): {error}") from None

    def score(self, samples: Samples) -> np.ndarray:
        """As :class:`TermScorer` says. The function gets completions and their token ids as TRL gives them."""
        batch = samples.batch
        messages = [_message(p, c) for p, c in zip(samples.prompts, samples.completions, strict=True)]
        responses = [t[n:].tolist() for t, n in zip(batch.sequences(), batch.prompt_length, strict=True)]
        columns = {"completion_ids": responses, **samples.columns}
        return self(samples.prompts, messages, batch.example_id.tolist(), **columns)

    def __call__(self, prompts: list[Any], completions: list[Any], example_id: list[int], **columns: Any) -> np.ndarray:
        """Scores (B,) float32. After the retries it raises RewardError, or under on_error: drop gives DROPPED for all."""
        problem = ""
        for attempt in range(self.term.retries + 1):
            if attempt:
                time.sleep(min(5.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0))
            try:
                values = self._call({"prompts": prompts, "completions": completions, **columns})
                return checked(self.term.name, self.term.path, values, example_id, self.term.on_error)
            except (Failed, RewardError) as error:
                problem = str(error)
        if self.term.on_error == "drop":
            return np.full(len(completions), DROPPED, np.float32)
        prefix = "" if problem.startswith("reward '") else f"reward '{self.term.name}' ({self.term.path}) "
        raise RewardError(f"{prefix}{problem} (tried {self.term.retries + 1} times)")

    def _call(self, arguments: dict[str, Any]) -> Any:
        if self.process is None:
            self._start()
        try:
            return self._exchange(arguments)
        finally:
            self._limit_prints()

    def _limit_prints(self) -> None:
        """Empties a file of prints that has grown beyond MAX_PRINTED, so that a chatty function fills no disk."""
        if self.prints is not None and self.prints.is_file() and self.prints.stat().st_size > MAX_PRINTED:
            os.truncate(self.prints, 0)  # the child appends, so it goes on at the new end
            with self.prints.open("a") as file:
                file.write(f"(more than {MAX_PRINTED} bytes were printed; the older ones are removed)\n")

    def _start(self) -> None:
        self.close()
        command = [sys.executable, str(PROCESS), self.file, self.function, str(os.getpid())]
        pipe = subprocess.PIPE
        with contextlib.ExitStack() as stack:
            stderr = None  # the reward worker's own
            if self.prints is not None:
                self.prints.parent.mkdir(parents=True, exist_ok=True)
                stderr = stack.enter_context(self.prints.open("ab"))
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, bufsize=0, process_group=0)
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        self._exchange(None)

    def _exchange(self, message: Any) -> Any:
        """Sends a message (None: only wait for the greeting) and returns the answer, all before the deadline.

        Raises Failed; the child is dead then, unless it answered that the call went wrong.
        """
        deadline = time.monotonic() + self.term.timeout_s
        try:
            if message is not None:
                data = pickle.dumps(message)
                self._write(struct.pack("<Q", len(data)) + data, deadline)
            ok, value = json.loads(self._read(deadline))
        except (BrokenPipeError, EOFError, ValueError):  # ValueError: something else was written into the pipe
            self._await_exit(1.0)
            raise Failed(f"ended its process or closed its pipes (exit code {self.close()})") from None
        except TimeoutError:
            self.close()
            raise Failed(f"did not return in {self.term.timeout_s:g} s and was killed") from None
        if not ok:
            if message is None:
                self.close()
            raise Failed(value)
        return value

    def _write(self, data: bytes, deadline: float) -> None:
        """Writes without ever blocking: a child that stopped reading costs the deadline, no more."""
        assert self.process is not None
        assert self.process.stdin is not None
        handle, unsent = self.process.stdin.fileno(), memoryview(data)
        while unsent:
            _await(handle, select.POLLOUT, deadline)
            unsent = unsent[os.write(handle, unsent[: 1 << 20]) :]

    def _read(self, deadline: float) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        handle, received, size = self.process.stdout.fileno(), b"", 8
        while len(received) < size:
            _await(handle, select.POLLIN, deadline)
            part = os.read(handle, 1 << 20)
            if not part:
                raise EOFError
            received += part
            if size == 8 and len(received) >= 8:
                size = 8 + struct.unpack("<Q", received[:8])[0]
        return received[8:]

    def _await_exit(self, seconds: float) -> None:
        """Waits for a child that is ending, and leaves it unreaped, so that its id still names its process group."""
        assert self.process is not None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.01)

    def close(self) -> int | None:
        """Kills the child and what it started in its process group; its exit code, if there was a child."""
        process, self.process = self.process, None
        if process is None:
            return None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        with contextlib.suppress(
            subprocess.TimeoutExpired
        ):  # a child in an uninterruptible read must not delay the worker
            process.wait(5.0)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        return process.returncode


def _message(prompt: Any, completion: str) -> Any:
    """The completion as TRL gives it to a function: text, or the assistant's message in a list if the prompt has messages."""
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]


def _await(handle: int, event: int, deadline: float) -> None:
    """Waits until the pipe is ready or closed. Raises TimeoutError. poll, since select fails beyond 1024 open files."""
    poll = select.poll()
    poll.register(handle, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
