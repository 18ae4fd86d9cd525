"""What the RL loop and the supervised loop share: the seconds of a step, and what follows every step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..actors.session import Stop
from ..config import RLJob, Supervised
from ..run.directory import RunDir
from ..run.events import EventLog
from ..run.outcome import Stopped, Watch
from ..run.sinks import Sinks, open_sinks
from ..run.usage import Meter


class StageTimer:
    """Seconds of the current step and of each of its stages; the event log shows the stage.

    A step begins with its first stage. The first step after a start generates before the first evaluation, so the
    seconds of that evaluation are subtracted from the step.
    """

    def __init__(self, events: EventLog) -> None:
        self.events = events
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
        self.events.at(stage=name)
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def metrics(self) -> dict[str, float]:
        """time/... of each stage. A checkpoint follows its step's line, so its seconds are in the next line."""
        names = {"checkpoint": "previous_checkpoint"}
        return {f"time/{names.get(name, name)}": seconds for name, seconds in self.seconds.items()}

    def step_seconds(self) -> float:
        """Seconds since the start, without evaluations."""
        return time.monotonic() - self.began - self.seconds.get("evaluate", 0.0)


@dataclass(kw_only=True)
class StepEnd:
    """What follows every step: evaluation, usage, metrics, checkpoint, progress line, and the end of a stopped run.

    ``evaluate`` returns held-out metrics and ``save`` writes a checkpoint; both time themselves, as stages "evaluate"
    and "checkpoint". ``progress_line`` describes a step in one line, which is printed every ``progress_every`` steps
    and after the last.
    """

    job: RLJob | Supervised
    run: RunDir
    meter: Meter
    timer: StageTimer
    stop: Stop
    watch: Watch
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[], None]
    progress_line: Callable[[int, dict[str, float]], str]
    progress_every: int = 1
    sinks: Sinks | None = None

    def open(self, num_steps_done: int) -> None:
        """Opens the sinks of a run that goes on after so many steps; lines of later steps are removed."""
        if self.sinks is not None:
            self.sinks.close()
        self.sinks = open_sinks(self.job, self.run, num_steps_done)

    def finish(self, step: int, metrics: dict[str, float], tokens: float, **usage: Any) -> None:
        """Ends the step that makes ``step`` steps done; ``tokens`` of it and ``usage`` are for the meter.

        Raises Stopped, once a checkpoint is written, if the command was told to stop.
        """
        assert self.sinks is not None
        metrics["time/step"] = self.timer.step_seconds()
        if tokens:
            metrics["step/tokens_per_second"] = tokens / max(metrics["time/step"], 1e-9)
        last = step == self.job.num_steps
        stopping = self.stop.requested and not last
        evaluated = last or is_due(step, self.job.evaluate.every)
        if evaluated:
            metrics |= self.evaluate()
        metrics |= self.timer.metrics() | self.meter.step(self.timer.seconds, tokens, **usage)
        self.timer.begin()
        # The line precedes the checkpoint: a run that resumes from it keeps the lines before its step and needs all
        # of them. So the line cannot hold this checkpoint's seconds. They are in the next line; those of the last
        # checkpoint are in log.jsonl and usage.json.
        self.sinks.write(step - 1, metrics)
        if last or stopping or is_due(step, self.job.checkpoint.every):
            self.save()
        if last or stopping:
            self.meter.finish(self.timer.seconds)
        if self.job.log.progress and (last or is_due(step, self.progress_every)):
            print(self.progress_line(step, metrics), flush=True)
        if evaluated:
            self.watch(step, metrics)
        self.timer.start()
        if stopping:
            raise Stopped(f"stopped after step {step} of {self.job.num_steps}; the same command goes on from there")


def is_due(step: int, every: int) -> bool:
    """Whether something that happens ``every`` so many steps happens after this one; with 0 it never does."""
    return bool(every) and step % every == 0
