"""User functions in a child process that can be killed: a reward that hangs or crashes takes nothing else with it.

This isolates faults; it is not a sandbox. The child runs with the rights of the reward worker.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import select
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..config import FunctionReward
from .reward import RewardError, checked

CHILD = Path(__file__).with_name("child.py")


class Failed(Exception):
    """One call failed; it may be tried again."""


class UserFunction:
    """``path/to/file.py:function``, called through a child process that is started once and restarted after a failure.

    Raises RewardError at once where the file or the function is not there or cannot be imported.
    """

    def __init__(self, term: FunctionReward) -> None:
        self.term = term
        self.file, _, self.function = term.path.rpartition(":")
        self.process: subprocess.Popen[bytes] | None = None
        if not Path(self.file).is_file():
            raise RewardError(f"reward '{term.name}': no such file {self.file}")
        try:
            self._start()
        except Failed as error:
            raise RewardError(f"reward '{term.name}' ({term.path}): {error}") from None

    def __call__(self, prompts: list[Any], completions: list[Any], example_id: list[int], **columns: Any) -> np.ndarray:
        """Scores (B,) float32. After the retries it raises RewardError, or gives NaN for all rows under on_error: drop."""
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
            return np.full(len(completions), np.nan, np.float32)
        prefix = "" if problem.startswith("reward '") else f"reward '{self.term.name}' ({self.term.path}) "
        raise RewardError(f"{prefix}{problem} (tried {self.term.retries + 1} times)")

    def _call(self, arguments: dict[str, Any]) -> Any:
        if self.process is None:
            self._start()
        return self._exchange(arguments)

    def _start(self) -> None:
        self.close()
        command = [sys.executable, str(CHILD), self.file, self.function, str(os.getpid())]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._exchange(None)

    def _exchange(self, message: Any) -> Any:
        """Sends a message (None: only wait for the greeting) and returns the answer. Raises Failed; the child is dead then."""
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            if message is not None:
                data = pickle.dumps(message)
                self.process.stdin.write(struct.pack("<Q", len(data)) + data)
                self.process.stdin.flush()
            ok, value = pickle.loads(self._read(time.monotonic() + self.term.timeout_s))
        except (BrokenPipeError, EOFError):
            code = self.process.wait()
            self.close()
            raise Failed(f"ended its process (exit code {code})") from None
        except TimeoutError:
            self.close()
            raise Failed(f"did not return in {self.term.timeout_s:g} s and was killed") from None
        if not ok:
            if message is None:
                self.close()
            raise Failed(value)
        return value

    def _read(self, until: float) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        handle, got, need = self.process.stdout.fileno(), b"", 8
        while len(got) < need:
            if not select.select([handle], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(handle, 1 << 20)
            if not part:
                raise EOFError
            got += part
            if need == 8 and len(got) >= 8:
                need = 8 + struct.unpack("<Q", got[:8])[0]
        return got[8:]

    def close(self) -> None:
        """Kills the child."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self.process = None
