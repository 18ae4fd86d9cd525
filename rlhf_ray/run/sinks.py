"""Where the metrics of each step go: metrics.jsonl, log.jsonl, TensorBoard, Weights & Biases, Prometheus."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..config import RLJob, Supervised
from .atomic import write_text
from .directory import RunDir
from .events import EventLog
from .reader import parse_metrics

log = logging.getLogger(__name__)

COUNTED = {"usage/tokens": "tokens", "usage/device_seconds": "device_seconds", "usage/cost": "cost"}
"""Amounts of one step -> Prometheus counters of this process; sums over restarts are the metrics usage/total_..."""

TAGS = ("run_id", "job_kind")  # not `job`, which Prometheus uses for the name of a scrape target


class Sink(Protocol):
    """A place that the metrics of each step are written to. Steps are numbered from 0."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """RUN/metrics.jsonl: one JSON object a step; a number that is not finite is null.

    Opening the file removes the lines of ``first_step`` and later steps, so that a resumed run repeats none.
    """

    def __init__(self, file: Path, first_step: int, run_id: str | None = None) -> None:
        self.origin = {} if run_id is None else {"run_id": run_id}
        if file.exists():
            rows = ((line, parse_metrics(line)) for line in file.read_text(errors="replace").splitlines())
            earlier = [line for line, row in rows if row is not None and row["step"] < first_step]
            write_text(file, "".join(f"{line}\n" for line in earlier))
        self.file = file.open("a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line and flushes it."""
        values = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self.file.write(json.dumps({**self.origin, "step": step, **values}) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


class StepEvents:
    """A line of RUN/log.jsonl for each finished step."""

    def __init__(self, events: EventLog) -> None:
        self.events = events

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the line, with the step's seconds."""
        self.events.finish_step(step, metrics["time/step"])

    def close(self) -> None:
        """Does nothing: the event log is open as long as the run directory, the sinks as long as a training."""


class TensorBoard:
    """TensorBoard events in a directory; the files' names end in the run's id."""

    def __init__(self, directory: Path, first_step: int, run_id: str | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        suffix = "" if run_id is None else f".{run_id}"
        self.writer = SummaryWriter(str(directory), purge_step=first_step, filename_suffix=suffix)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a scalar for each metric."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self.writer.close()


class WeightsAndBiases:
    """A W&B run, which a resumed job continues: its id and name are the run's id, or else the run directory's name."""

    def __init__(self, project: str, directory: Path, config: Mapping[str, Any], run_id: str | None = None) -> None:
        import wandb

        name = run_id or directory.name
        self.run = wandb.init(
            project=project, id=name, name=name, resume="allow", dir=str(directory), config=dict(config)
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of the step."""
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finishes the W&B run."""
        self.run.finish()


def gauge_name(metric: str) -> str:
    """The name that Ray is given for a metric: rlhf_reward_mean for 'reward/mean'."""
    return f"rlhf_{re.sub(r'[^a-zA-Z0-9]+', '_', metric)}"


def exported_name(metric: str) -> str:
    """The name under which Prometheus reads a metric: ray_rlhf_reward_mean for 'reward/mean'."""
    return f"ray_{gauge_name(metric)}"


class Gauges:
    """The newest value of each metric on the metrics endpoint of Ray's node, and counters of what adds up.

    Both are tagged with the run's id and the kind of job.
    """

    def __init__(self, run_id: str, job: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self.tags = dict(zip(TAGS, (run_id, job), strict=True))
        self.make_gauge: Callable[[str, str, tuple[str, ...]], Any] = Gauge
        self.gauges: dict[str, Any] = {}
        self.counters = {
            metric: self._tagged(Counter(f"rlhf_{name}", f"sum of {metric} since the process began", TAGS))
            for metric, name in COUNTED.items()
        }
        self.step = self._tagged(Gauge("rlhf_step", "Finished steps.", TAGS))

    def _tagged(self, instrument: Any) -> Any:
        instrument.set_default_tags(self.tags)
        return instrument

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sets the gauges and adds to the counters; a metric that a step lacks keeps its last value."""
        self.step.set(step + 1)
        for name, value in metrics.items():
            if name not in self.gauges:
                gauge = self.make_gauge(gauge_name(name), f"{name} of metrics.jsonl", TAGS)
                self.gauges[name] = self._tagged(gauge)
            self.gauges[name].set(value)
        for name, counter in self.counters.items():
            if metrics.get(name, 0.0) > 0:
                counter.inc(metrics[name])

    def close(self) -> None:
        """Does nothing: Ray forgets the values when the process ends."""


class Sinks:
    """RUN/metrics.jsonl and any number of trackers, by name.

    A tracker that cannot be opened, or that fails later, is left out with a warning. metrics.jsonl must not fail.
    """

    def __init__(self, lines: JsonLines, openers: Mapping[str, Callable[[], Sink]]) -> None:
        self.lines = lines
        self.trackers: dict[str, Sink] = {}
        for name, open_tracker in openers.items():
            with _warned(f"{name} cannot be opened and is left out"):
                self.trackers[name] = open_tracker()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step everywhere."""
        self.lines.write(step, metrics)
        for name in list(self.trackers):
            with _warned(f"{name} failed and is left out from now on"):
                self.trackers[name].write(step, metrics)
                continue
            del self.trackers[name]  # reached only after an error

    def close(self) -> None:
        """Closes the file and all trackers."""
        self.lines.close()
        for name, tracker in self.trackers.items():
            with _warned(f"{name} failed when it was closed"):
                tracker.close()


@contextlib.contextmanager
def _warned(message: str) -> Iterator[None]:
    """Turns any error of the block into a warning: ``message`` and the first line of the error."""
    try:
        yield
    except Exception as error:
        log.warning("%s: %s", message, (str(error).strip() or type(error).__name__).splitlines()[0])


def open_sinks(job: RLJob | Supervised, run: RunDir, first_step: int) -> Sinks:
    """All sinks that a training job asks for, for the steps from ``first_step`` on."""
    run.events.at(step=first_step)
    openers: dict[str, Callable[[], Sink]] = {"log.jsonl": lambda: StepEvents(run.events)}
    if job.log.prometheus:
        openers["Prometheus"] = lambda: Gauges(run.id, job.job)
    if job.log.tensorboard:
        openers["TensorBoard"] = lambda: TensorBoard(run.path / "tensorboard", first_step, run.id)
    if (project := job.log.wandb) is not None:
        config = job.model_dump(mode="json")
        openers["Weights & Biases"] = lambda: WeightsAndBiases(project, run.path, config, run.id)
    return Sinks(JsonLines(run.path / "metrics.jsonl", first_step, run.id), openers)
