"""RUN/usage.json: what a run has used so far, step by step, over all its restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import usage
from .atomic import write_json
from .directory import RunDir


class Meter:
    """Counts from when the run directory was opened; made when the workers stand ready.

    Work that is done again after a fault counts again: it was paid for. Only what a process that died did after its last
    finished step is lost.
    """

    def __init__(self, run: RunDir, devices: usage.Devices, price_per_gpu_hour: float | None) -> None:
        self.file, self.price, self.devices = run.path / "usage.json", price_per_gpu_hour, devices
        self.total = read(run.path) or usage.NOTHING
        self.starting = {"start": time.time() - run.began}
        self.mark = time.monotonic() - self.starting["start"]

    def step(self, stages: Mapping[str, float], tokens: float, **more: Any) -> dict[str, float]:
        """Adds everything since the last call as one step. Returns usage/... of it and of the run; ``more`` as in usage.Step."""
        step = self._add(stages, tokens, **more)
        return usage.metrics(self.total, self.devices, step, self.price)

    def finish(self, stages: Mapping[str, float]) -> None:
        """Adds everything since the last step, as its checkpoint, which is no step of its own."""
        self._add(stages, 0.0, num_steps=0)

    def _add(self, stages: Mapping[str, float], tokens: float, **more: Any) -> usage.Step:
        now = time.monotonic()
        step = usage.Step(now - self.mark, {**self.starting, **stages}, tokens, **more)
        self.mark, self.starting = now, {}
        self.total = usage.add(self.total, self.devices, step, self.price)
        write_json(self.file, self.total)
        return step


def read(directory: Path) -> usage.Totals | None:
    """What a run has used; None where it counted nothing."""
    file = directory / "usage.json"
    return json.loads(file.read_text()) if file.is_file() else None


def read_stages(directory: Path) -> dict[str, usage.Totals]:
    """What each run of a pipeline has used, in the order in which they ended; those that were set aside too."""
    files = sorted(directory.glob("*/usage.json"), key=lambda file: file.stat().st_mtime)
    return {file.parent.name: json.loads(file.read_text()) for file in files}
