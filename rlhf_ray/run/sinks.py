"""A step's metrics on the metrics endpoint of Ray's nodes, for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from .directory import RunDir
from .events import EventLog
from .metrics import Sinks

COUNTED = {"usage/tokens": "tokens", "usage/device_seconds": "device_seconds", "usage/cost": "cost"}
"""Metrics that are amounts of one step -> counters of this process, for rates; sums over restarts are usage/total_..."""

TAGS = ("run_id", "job_kind")  # not `job`: Prometheus gives a target's own name that label


def gauge_name(metric: str) -> str:
    """What Ray is told: rlhf_reward_mean for 'reward/mean'."""
    return f"rlhf_{re.sub(r'[^a-zA-Z0-9]+', '_', metric)}"


def exported_name(metric: str) -> str:
    """What Prometheus sees."""
    return f"ray_{gauge_name(metric)}"


class Gauges:
    """The newest value of each metric, and counters of what adds up; both by run id and job."""

    def __init__(self, run_id: str, job: str) -> None:
        self.tags = dict(zip(TAGS, (run_id, job), strict=True))
        self.gauges: dict[str, Any] = {}
        self.counters = {
            key: self._tagged(Counter(f"rlhf_{name}", f"sum of {key} since the process began", TAGS))
            for key, name in COUNTED.items()
        }
        self.step = self._tagged(Gauge("rlhf_step", "Finished steps.", TAGS))

    def _tagged(self, metric: Any) -> Any:
        metric.set_default_tags(self.tags)
        return metric

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sets the gauges; a metric that a step lacks keeps its last value."""
        self.step.set(step + 1)
        for name, value in metrics.items():
            if name not in self.gauges:
                self.gauges[name] = self._tagged(Gauge(gauge_name(name), f"{name} of metrics.jsonl", TAGS))
            self.gauges[name].set(value)
        for name, counter in self.counters.items():
            if metrics.get(name, 0.0) > 0:
                counter.inc(metrics[name])

    def close(self) -> None:
        """Nothing: Ray forgets the values with the process."""


class StepEvents:
    """A line of RUN/log.jsonl for each finished step."""

    def __init__(self, events: EventLog) -> None:
        self.events = events

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the line."""
        self.events.finish_step(step, metrics["time/step"])

    def close(self) -> None:
        """Does nothing: the event log is open as long as the run directory, the sinks as long as a training."""


def sinks(job: Any, run: RunDir, step: int) -> Sinks:
    """Everywhere that the metrics of a run go, from ``step`` on."""
    run.events.at(step=step)
    more: list[Any] = [StepEvents(run.events)]
    if job.log.prometheus:
        more.append(Gauges(run.id, job.job))
    config = job.model_dump(mode="json")
    return Sinks(run.path, step, job.log.tensorboard, job.log.wandb, config, run.id, more)
