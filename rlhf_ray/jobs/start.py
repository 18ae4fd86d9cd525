"""Runs a job: its checks, its Ray session, its run directory."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from rich.console import Console

from ..config import Job, PipelineJob
from ..run.directory import RunDir, differences
from ..run.events import notice
from ..run.reader import read_config, read_manifest, read_metrics
from . import preflight
from .kind import RunContext
from .kinds import PIPELINE, kind_of

NOT_THE_RESULT = re.compile(
    r"(num_steps|cluster|run\.dir|log|checkpoint)\b"
)  # options that leave a finished run as it is


def run(job: Job, console: Console) -> None:
    """Runs a job in a Ray session of its own, or on the cluster that it names. A finished run only says so.

    Raises BadInput (nothing has run yet), Failed (something has), Stopped (by a signal), or what went wrong.
    """
    if is_finished(job):
        console.print(f"finished already, nothing to do: {Path(job.run.dir).absolute()}")
        return
    from ..actors.session import SUBMITTED, check_run_dir, check_shared, ray_session, stop_on_signals

    check_run_dir(job.run.dir, submitted=SUBMITTED in os.environ)
    with stop_on_signals() as stop, RunDir(job) as run_dir:
        preflight.check_job(job)
        # Torch and transformers read the working directory at their import. Under `ray job submit` Ray deletes it and makes
        # it again when two raylets of one host start workers, so they are imported before that.
        from ..train import rl  # noqa: F401

        notice("starting Ray")
        with ray_session(job.cluster):
            import ray

            check_shared(run_dir.path)
            run_dir.record("running", resources=ray.cluster_resources())
            kind_of(job).run_and_record(job, RunContext(run=run_dir, stop=stop, console=console))
        run_dir.record("finished")
        console.print(f"run directory: {run_dir.path}")


def is_finished(job: Job) -> bool:
    """Whether the run directory holds the finished run of this very job, made no longer than it was.

    A training counts; an evaluation, which reads data that may have changed, is done again.
    """
    directory = Path(job.run.dir).absolute()
    config = read_config(directory)
    if config is None or read_manifest(directory).get("state") != "finished":
        return False
    changes = differences(config, json.loads(job.model_dump_json()))
    if [change for change in changes if not NOT_THE_RESULT.match(change)]:
        return False
    if isinstance(job, PipelineJob):
        return PIPELINE.is_finished(job)
    num_steps = getattr(job, "num_steps", None)
    return num_steps is not None and (directory / "model").is_dir() and len(read_metrics(directory)) >= num_steps
