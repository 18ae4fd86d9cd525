"""Metrics: sums that add up over micro-batches and ranks, and the sinks they end in."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .atomic import write_text

log = logging.getLogger(__name__)

Sums = dict[str, Any]
"""name -> (sum, weight); a name that ends in _max -> one number."""


def add(parts: Iterable[Mapping[str, Any]]) -> Sums:
    """Adds sums and weights, and takes the maximum of names that end in _max. Returns plain floats."""
    total: Sums = {}
    for part in parts:
        for name, value in part.items():
            if name.endswith("_max"):
                total[name] = max(total.get(name, -math.inf), float(value))
            else:
                before = total.get(name, (0.0, 0.0))
                total[name] = (before[0] + float(value[0]), before[1] + float(value[1]))
    return total


def means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Divides each sum by its weight; what nothing was weighed for is left out."""
    divided = {}
    for name, value in sums.items():
        if name.endswith("_max"):
            divided[name] = float(value)
        elif value[1]:
            divided[name] = value[0] / value[1]
    return divided


class Sink(Protocol):
    """Somewhere metrics go."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """RUN/metrics.jsonl: one object a step. Steps from ``keep`` on are cut off, so that a resumed run repeats none."""

    def __init__(self, path: Path, keep: int, run_id: str | None = None) -> None:
        self.about = {} if run_id is None else {"run_id": run_id}
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step(line) < keep]
            write_text(path, "".join(f"{line}\n" for line in lines))
        self.file = path.open("a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.file.write(json.dumps({**self.about, "step": step, **{k: _json(v) for k, v in metrics.items()}}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """TensorBoard events in a directory; the files' names end in the run's id."""

    def __init__(self, directory: Path, keep: int, run_id: str | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        suffix = "" if run_id is None else f".{run_id}"
        self.writer = SummaryWriter(str(directory), purge_step=keep, filename_suffix=suffix)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A W&B run that a resumed job continues: its id and name are the run's id, or else the run directory's name."""

    def __init__(self, project: str, directory: Path, config: Mapping[str, Any], run_id: str | None = None) -> None:
        import wandb

        name = run_id or directory.name
        self.run = wandb.init(
            project=project, id=name, name=name, resume="allow", dir=str(directory), config=dict(config)
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class Sinks:
    """All sinks of a run, and ``more``. A tracker that fails is dropped with a warning; metrics.jsonl must not fail."""

    def __init__(
        self,
        directory: Path,
        keep: int,
        tensorboard: bool,
        wandb: str | None,
        config: Mapping[str, Any],
        run_id: str | None = None,
        more: Sequence[Sink] = (),
    ) -> None:
        self.lines = JsonLines(directory / "metrics.jsonl", keep, run_id)
        self.trackers: list[Sink] = [*more]
        if tensorboard:
            self.trackers.append(TensorBoard(directory / "tensorboard", keep, run_id))
        if wandb is not None:
            self.trackers.append(WeightsAndBiases(wandb, directory, config, run_id))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.lines.write(step, metrics)
        for tracker in list(self.trackers):
            try:
                tracker.write(step, metrics)
            except Exception as error:
                log.warning("%s failed and is left out from now on: %s", type(tracker).__name__, error)
                self.trackers.remove(tracker)

    def close(self) -> None:
        for sink in [self.lines, *self.trackers]:
            sink.close()


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # a line cut short by a crash
        return 1 << 60
