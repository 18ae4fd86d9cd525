"""The seconds of a step and of its stages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class StageTimer:
    """Seconds of the step that is running, and of each of its stages.

    A step begins with its first stage. What the first step after a start generates before the first evaluation belongs
    to it, so the evaluation in between is subtracted from the step.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets all stages and starts a step; also those of a step that a lost learner rank has cut short."""
        self.seconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """Starts the clock of the next step."""
        self.began = time.monotonic()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to the stage ``name``; not those of a block that raises."""
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def metrics(self) -> dict[str, float]:
        """time/... of each stage. A checkpoint is written after its step's line, so its seconds are in the next line."""
        names = {"checkpoint": "previous_checkpoint"}
        return {f"time/{names.get(name, name)}": seconds for name, seconds in self.seconds.items()}

    def step_seconds(self) -> float:
        """Seconds since the start, without evaluations."""
        return time.monotonic() - self.began - self.seconds.get("evaluate", 0.0)
