"""The run directory: config, lock, manifest, and whether a run may go on in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..config import BadInput, parse
from .atomic import write_json
from .events import EventLog
from .outcome import Stopped

log = logging.getLogger(__name__)

MAY_CHANGE = re.compile(  # stages: see lineage.py; base: the job of a search
    r"(num_steps|cluster|run\.dir|stages|files|log|checkpoint|evaluate|base\.log|base\.checkpoint|tune\.max_failures)\b"
)
PACKAGES = ("rlhf-ray", "torch", "transformers", "ray", "deepspeed", "peft", "pyarrow", "numpy")


class RunDir:
    """RUN, held by one process at a time; ``keep_state`` leaves a finished run's manifest as it is, ``wait_s`` waits for one that ends.

    ``id`` is made with the directory, kept for good, and in everything that the run writes; that of a pipeline's stage begins with
    the pipeline's (``within``). Raises BadInput where another run holds the directory or another job wrote it.
    """

    def __init__(self, job: Any, keep_state: bool = False, within: str | None = None, wait_s: float = 0.0) -> None:
        self.path = Path(job.run.dir).absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise BadInput(f"run.dir: cannot write to {self.path}: {error.strerror}") from None
        until = time.monotonic() + wait_s
        while not self._locked():
            if time.monotonic() >= until:
                self.lock.seek(0)
                raise BadInput(f"run.dir: {self.path} is in use by {self.lock.read().strip() or 'another run'}")
            time.sleep(0.5)
        self.lock.truncate(0)
        self.lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self.lock.flush()
        self.job = job
        self._accept(job)
        self.began = time.time()
        self.id = self.state.get("run_id") or _new_id(self.path.name, within)
        self.events = EventLog(self.path / "log.jsonl", self.id, job.job)
        if not (keep_state and self.state.get("state") == "finished"):
            self.record("running")

    def _locked(self) -> bool:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _accept(self, job: Any) -> None:
        config, mine = self.path / "config.json", job.model_dump(mode="json")
        if config.is_file() and self._begun():
            old = json.loads(config.read_text())
            with contextlib.suppress(BadInput):  # options younger than the run get their defaults
                old = parse(old, str(config)).model_dump(mode="json")
            changed = differences({"job": old.get("job")}, {"job": mine["job"]}) or differences(old, mine)
            refused = [c for c in changed if not MAY_CHANGE.match(c)]
            if refused:
                raise BadInput(
                    f"run.dir: {self.path} holds a run with another config ({'; '.join(refused[:3])}); "
                    "take the old values to go on with it, or another run.dir"
                )
        write_json(config, mine)

    def _begun(self) -> bool:
        """Whether a run here got as far as writing something that another config must not go on with."""
        made = ("init", "metrics.jsonl", "checkpoints", "evaluations", "model", "*/manifest.json", "trials/*")
        return any(next(self.path.glob(name), None) is not None for name in made)

    def record(self, state: str, **more: Any) -> None:
        """Writes RUN/manifest.json: versions, revision, hardware, exit state."""
        file, before = self.path / "manifest.json", {k: v for k, v in self.state.items() if k != "error"}
        used = self.path / "usage.json"
        now = {
            "run_id": self.id,
            "state": state,
            "job": self.job.job,
            "seed": self.job.run.seed,
            "command": sys.argv,
            "git_revision": _revision(),
            "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "host": socket.gethostname()},
            "seconds": round(time.time() - self.began, 1),
        }
        if used.is_file():
            now["usage"] = json.loads(used.read_text())
        write_json(file, {**before, **now, **more})
        if state != before.get("state"):
            log.info("the run is %s", state)

    @property
    def state(self) -> dict[str, Any]:
        """The manifest as it stands; empty before there is one."""
        return manifest(self.path)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Records how it ended, and lets another process have the directory."""
        if isinstance(error, Stopped | KeyboardInterrupt | SystemExit):  # the last is how a search ends a trial
            self.record("stopped")
        elif error is not None:
            self.record("failed", error=f"{type(error).__name__}: {error}")
            self.events.write_failure(error)
        self.close()

    def close(self) -> None:
        """Lets another process have the directory."""
        self.events.close()
        self.lock.close()


def _new_id(name: str, within: str | None) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    return f"{f'{within}.' if within else ''}{plain}-{secrets.token_hex(4)}"


def manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a run directory; empty before there is one."""
    file = directory / "manifest.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Dotted paths at which two JSON trees differ, each with old and new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            found += differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return found
    return [] if old == new else [f"{where}: {json.dumps(old)} -> {json.dumps(new)}"]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    root = Path(__file__).parent
    if shutil.which("git") is None:  # as in an image
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
