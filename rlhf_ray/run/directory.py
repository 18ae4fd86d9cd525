"""The run directory: its lock, config and manifest, and whether a job may continue in it.

The layout of RUN. "Training jobs" are the RL jobs and the supervised jobs.

| path | format | content | written by |
|---|---|---|---|
| `config.json` | JSON | the job with all its options | every job |
| `manifest.json` | JSON | run id, state, command, versions, hardware, usage, results or error | every job |
| `log.jsonl` | JSON, a line an event | notices, warnings, finished steps; no prompt or completion | every job |
| `.lock` | text | the process that holds the directory | every job |
| `metrics.jsonl` | JSON, a line a step | the metrics of a step, explained in `run/metric_names.py` | training jobs |
| `tensorboard/`, `wandb/` | their own | the same metrics for these trackers | `log.tensorboard`, `log.wandb` |
| `usage.json` | JSON | device-seconds, tokens and cost, summed over all restarts | training jobs |
| `init/` | Hugging Face | the random model that the run began with | jobs with `model.init` |
| `tokenizer/` | Hugging Face | the policy's tokenizer, as the reward workers load it | jobs with rollouts |
| `checkpoints/step-000012/` | `run/checkpoint.py` | everything that step 13 depends on | training jobs |
| `best/step-000012/` | `run/checkpoint.py` | the learner of the best evaluation | supervised, `evaluate.best` |
| `model/` | Hugging Face | the trained model with its tokenizer, or a tokenizer | training and tokenizer jobs |
| `trajectories/step-000011.parquet` | a row a sequence | the rollouts that step 12 learned from | RL jobs |
| `evaluations/step-000012.parquet` | a row an answer | judged answers to held-out prompts | RL jobs, evaluate |
| `prints/worker-0/TERM.txt` | text | what a reward function prints, at most 10 MB | function rewards |
| `evaluation.json` | JSON | the newest held-out results | supervised jobs, evaluate |
| `tokens-HASH/` | raw arrays, JSON | a streamed dataset as token columns (`data/stream.py`) | `data.stream` |
| `kept.jsonl` | JSON, a line a row | the sampled answers that were kept | sample |
| `scored.jsonl` | JSON, a line a row | the rows of a dataset with their scores | score |
| `STAGE/` | as this table | the RUN of a stage | pipeline |
| `STAGE.old-1/` | as this table | a stage that was set aside when its inputs changed | pipeline |
| `trials/TRIAL/` | as this table | the RUN of a trial | search |
| `trials/TRIAL/output.txt` | text | what the trial printed | search |
| `trials/TRIAL/clone.json` | JSON | the checkpoint that the trial started from | search, Population Based Training |
| `search/` | Ray Tune's | the state of the search | search |
| `tune.json`, `best.yaml`, `trials.svg` | JSON, YAML, SVG | results, the best trial's job, a plot | search |

Steps in file names: checkpoints and evaluations count finished steps. Trajectories number the steps from 0, as `step`
in metrics.jsonl does.
"""

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

from ..config import BadInput, Job, Search, parse
from .atomic import write_json
from .events import EventLog
from .outcome import Stopped
from .reader import read_config, read_manifest, read_usage_json

log = logging.getLogger(__name__)

MAY_CHANGE = re.compile(  # options; `stages` and `files`: jobs/lineage.py compares these; `base`: the job of a search
    r"(num_steps|cluster|run\.dir|stages|files|log|checkpoint|evaluate|base\.log|base\.checkpoint|tune\.max_failures)\b"
)
OUTPUTS = (
    "checkpoints/step-*",
    "model",
    "evaluation.json",
    "kept.jsonl",
    "scored.jsonl",
    "*/manifest.json",
    "trials/*",
)
BEFORE_STEP_1 = (
    "init",
    "tokenizer",
    "evaluations",
    "trajectories",
    "metrics.jsonl",
    "tensorboard",
    "usage.json",
    "prints",
)
VANISHED = "ended without a record of how: it was killed, or its machine was lost"
CORRECTION_S = 0.3  # correct_state holds a run's lock for a moment
PACKAGES = ("rlhf-ray", "torch", "transformers", "ray", "deepspeed", "peft", "pyarrow", "numpy")


class RunDir:
    """RUN, held by one process at a time; a context manager that records how the run ends.

    ``path`` is absolute. ``id`` is made together with the directory, never changes, and is in everything that the run
    writes. ``events`` is the open event log. ``opened`` is when this process took the directory, as time.time().
    """

    def __init__(
        self, job: Job | Search, *, keep_finished: bool = False, parent_id: str | None = None, wait_s: float = 0.0
    ) -> None:
        """Takes the directory ``job.run.dir``, makes it if needed, and records the state "running".

        ``keep_finished`` leaves the manifest of a finished run as it is. ``parent_id`` is the id of the pipeline or
        search that the run belongs to; the run's own id begins with it. ``wait_s`` is how long to wait for another
        process that holds the directory. Raises BadInput if another process holds it, if a job with other options has
        written to it, or if its config, manifest or usage is damaged.
        """
        self.job = job
        self.path = Path(job.run.dir).absolute()
        self._lock = _locked_file(self.path, wait_s)
        try:
            self._require_same_options()
            self.id = self.manifest.get("run_id") or _new_id(self.path.name, parent_id)
            read_usage_json(self.path)
        except BaseException:
            self._lock.close()
            raise
        write_json(self.path / "config.json", job.model_dump(mode="json"))
        self.opened = time.time()
        self.events = EventLog(self.path / "log.jsonl", self.id, job.job)
        if self.manifest.get("state") == "running":
            log.info("the command before this one %s", VANISHED)
        if not (keep_finished and self.manifest.get("state") == "finished"):
            self.record("running")

    def _require_same_options(self) -> None:
        """Raises BadInput if RUN has output of a job whose options differ in more than MAY_CHANGE allows.

        A run that never finished a step has no output: its directory is free for other options, and what it had
        prepared for the old ones is removed.
        """
        old = read_config(self.path)
        if old is None:
            return
        new = self.job.model_dump(mode="json")
        with contextlib.suppress(BadInput):  # options that are newer than the run get their defaults
            old = parse(old, str(self.path / "config.json")).model_dump(mode="json")
        changes = differences({"job": old.get("job")}, {"job": new["job"]}) or differences(old, new)
        refused = [change for change in changes if not MAY_CHANGE.match(change)]
        if not refused:
            return
        if self._has_output():
            raise BadInput(
                f"run.dir: {self.path} holds a run with another config ({'; '.join(refused[:3])}); set these "
                "options back to continue it, or choose another run.dir; to train its model further with other "
                f"options, choose another run.dir and model.path={self.path / 'model'}"
            )
        for name in BEFORE_STEP_1:
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _has_output(self) -> bool:
        """Whether the run has finished a step, or has written a result."""
        metrics = self.path / "metrics.jsonl"
        has_steps = metrics.is_file() and metrics.stat().st_size > 0
        return has_steps or any(next(self.path.glob(pattern), None) is not None for pattern in OUTPUTS)

    @property
    def manifest(self) -> dict[str, Any]:
        """RUN/manifest.json as it is now; empty before there is one."""
        return read_manifest(self.path)

    def record(self, state: str, **fields: Any) -> None:
        """Writes RUN/manifest.json: ``state``, ``fields``, versions, revision, hardware, seconds, usage.

        Fields of an earlier manifest stay. States are "running", "finished", "failed", and "stopped" (from outside,
        with a checkpoint).
        """
        earlier = {key: value for key, value in self.manifest.items() if key != "error"}
        current = {
            "run_id": self.id,
            "state": state,
            "job": self.job.job,
            "seed": self.job.run.seed,
            "command": sys.argv,
            "git_revision": _revision(),
            "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "host": socket.gethostname()},
            "seconds": round(time.time() - self.opened, 1),
        }
        usage = read_usage_json(self.path)
        if usage is not None:
            current["usage"] = usage
        write_json(self.path / "manifest.json", {**earlier, **current, **fields})
        if state != earlier.get("state"):
            log.info("the run is %s", state)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Records how the run ended if it ended early, and releases the directory."""
        if isinstance(error, Stopped | KeyboardInterrupt | SystemExit):  # a search ends a trial with SystemExit
            self.record("stopped")
        elif error is not None:
            self.record("failed", error=f"{type(error).__name__}: {error}")
            self.events.write_failure(error)
        self.close()

    def close(self) -> None:
        """Closes the event log and releases the directory for another process."""
        self.events.close()
        self._lock.close()


def correct_state(path: Path) -> None:
    """Records "failed" in the manifest of a run that says "running" although no process holds its directory."""
    if read_manifest(path).get("state") != "running":
        return
    with contextlib.suppress(OSError), (path / ".lock").open("r+") as file:  # in use, or of another user
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        manifest = read_manifest(path)
        if manifest.get("state") == "running":
            write_json(path / "manifest.json", {**manifest, "state": "failed", "error": f"the command {VANISHED}"})


def _locked_file(path: Path, wait_s: float) -> Any:
    """Makes the directory ``path`` and locks its file ``.lock``; the lock lasts until the returned file is closed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("a+")
    except OSError as error:
        raise BadInput(f"run.dir: cannot write to {path}: {error.strerror}") from None
    deadline = time.monotonic() + max(wait_s, CORRECTION_S)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().strip() or "another run"
                raise BadInput(f"run.dir: {path} is in use by {holder}; choose another run.dir") from None
        time.sleep(0.1)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _new_id(name: str, parent_id: str | None) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    return f"{f'{parent_id}.' if parent_id else ''}{plain}-{secrets.token_hex(4)}"


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted paths at which two JSON trees differ, each with the old and the new value: "learner.lr: 0.25 -> 0.5"."""
    if isinstance(old, dict) and isinstance(new, dict):
        changes = []
        for key in sorted(set(old) | set(new)):
            changes += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return changes
    return [] if old == new else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git commit of the package's source; None outside a repository or without git, as in an image."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
