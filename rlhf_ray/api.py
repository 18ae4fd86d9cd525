"""The Python API: train a job, evaluate a model, read a run; `from rlhf_ray import train, evaluate, load_run`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._compat import hide_sklearn
from .actors.environment import authenticate
from .config import BadInput, Job, apply_overrides, load_job, parse
from .run import reader
from .run.directory import correct_state
from .run.events import PACKAGE, TerminalHandler

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Run:
    """A run directory, read when it is asked: nothing is cached, so a run that is going on shows its newest step."""

    path: Path

    @property
    def state(self) -> str:
        """'running', 'finished', 'stopped' or 'failed': RUN/manifest.json, corrected if a running command vanished."""
        correct_state(self.path)
        return str(reader.read_manifest(self.path).get("state", "unknown"))

    @property
    def config(self) -> dict[str, Any]:
        """The job with all defaults, as a tree of options."""
        return reader.read_config(self.path) or {}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict a step, oldest first: ``step`` (from 0) and numbers; None if a number was not finite."""
        return reader.read_metrics(self.path)

    def metric(self, name: str) -> list[float | None]:
        """The values of one metric, one a step, None where a step lacks it. Raises KeyError with similar names."""
        rows = self.metrics
        if rows and not any(name in row for row in rows):
            names = sorted({key for row in rows for key in row})
            raise KeyError(f"no metric '{name}' in {self.path}; there are {', '.join(names)}")
        return [row.get(name) for row in rows]

    @property
    def evaluations(self) -> dict[int, pa.Table]:
        """Finished steps -> held-out answers.

        Columns: example_id, sample, prompt, completion, reward, part/..., kl (nats), length (tokens).
        """
        import pyarrow.parquet as pq

        return {reader.evaluation_step(file): pq.read_table(file) for file in reader.evaluation_files(self.path)}

    @property
    def results(self) -> dict[str, Any]:
        """RUN/evaluation.json: what a supervised or an evaluation job measured on held-out examples."""
        return reader.read_evaluation(self.path) or {}

    @property
    def model(self) -> Path:
        """The exported model in Hugging Face format. Raises FileNotFoundError if the run has not exported one."""
        if not (self.path / "model").is_dir():
            raise FileNotFoundError(f"{self.path}: no model/ yet; the run is {self.state}")
        return self.path / "model"

    @property
    def stages(self) -> dict[str, Run]:
        """The runs of a pipeline's stages, by name."""
        return {name: Run(self.path / name) for name in self.config.get("stages", {}) if (self.path / name).is_dir()}


def train(job: str | Path | Mapping[str, Any], *overrides: str) -> Run:
    """Runs a job file, or a job given as a dict, and returns its run; on the same run directory it continues.

    ``overrides`` are 'key.path=value', as on the command line. Raises BadInput before anything was trained, Failed
    afterwards, Stopped if a signal ended the run with a checkpoint.
    """
    return start(read_job(job, overrides))


def evaluate(model: str | Path | Run, job: str | Path | Mapping[str, Any] | None = None, *overrides: str) -> Run:
    """Evaluates a model's answers: a run, a model directory or a hub id; ``job`` as in jobs/evaluate/. Returns its run.

    ``run.results`` has the measures with their intervals. Raises as :func:`train` does.
    """
    path = model.path if isinstance(model, Run) else Path(model)
    return start(read_job({"job": "evaluate"} if job is None else job, [f"model.path={model_of(path)}", *overrides]))


def load_run(path: str | Path) -> Run:
    """The run in a directory. Raises BadInput if there is none."""
    directory = Path(path).expanduser()
    if not (directory / "config.json").is_file():
        raise BadInput(f"{directory}: no config.json; expected the run directory of a job")
    return Run(directory)


def read_job(job: str | Path | Mapping[str, Any], overrides: list[str] | tuple[str, ...]) -> Job:
    """The checked job of a file or a dict."""
    if isinstance(job, Mapping):
        return parse(apply_overrides(dict(job), list(overrides)), "job")
    return load_job(job, list(overrides))


def model_of(path: Path) -> Path:
    """The model directory of a run directory; any other path as it is. Raises BadInput for a run without a model."""
    if not (path / "manifest.json").is_file():
        return path
    if (path / "model").is_dir():
        return path / "model"
    stages = ", ".join(sorted(model.parent.name for model in path.glob("*/model")))
    remedy = f"give one of its stages: {stages}" if stages else "wait until it has finished"
    raise BadInput(f"{path}: the run has no model/ of its own; {remedy}")


def start(job: Job) -> Run:
    """Runs a checked job in a Ray session of its own, or on the cluster that it names; notices go to stdout."""
    authenticate(job.cluster)  # before Ray is imported
    hide_sklearn()
    from .jobs.start import run
    from .report.console import plain_console

    with shown_notices():
        run(job, plain_console())
    return Run(Path(job.run.dir).expanduser())


@contextlib.contextmanager
def shown_notices() -> Iterator[None]:
    """Prints notices for the time of the block, unless something prints them already, as the command line does."""
    if any(isinstance(handler, TerminalHandler) for handler in logging.getLogger(PACKAGE).handlers):
        yield
        return
    with contextlib.closing(TerminalHandler()):
        yield
