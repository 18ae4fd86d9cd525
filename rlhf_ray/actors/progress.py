"""The clock of a call on workers, which restarts whenever one of them gets further."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

PROGRESS_GROUP = "progress"  # Ray's concurrency group in which progress() is answered while a call runs
POLLS_PER_DEADLINE = 4
LONGEST_POLL_S = 10.0
ANSWER_S = 1.0  # what a poll waits for answers; a stopped process gives none


class ProgressClock:
    """Waits for calls on workers, until none of them has got further for ``deadline_s``.

    A call that ends is progress. If ``actors`` are given, so is a change of what their ``progress()`` returns, which
    counts the work that they have finished.
    """

    def __init__(self, deadline_s: float, actors: Sequence[Any] = ()) -> None:
        self.deadline_s, self.actors = deadline_s, actors
        self.counts: dict[int, int] = {}
        self.questions: dict[int, Any] = {}  # progress() calls that are not answered yet
        self.is_last = False
        self.restart()

    def restart(self) -> None:
        """Gives the workers the whole time again."""
        self.until = time.monotonic() + self.deadline_s

    def shorten(self, seconds: float) -> None:
        """Gives them ``seconds`` from the first call of this method on, whatever progress they make."""
        if not self.is_last:
            self.is_last, self.until = True, min(self.until, time.monotonic() + seconds)

    def wait(self, refs: Sequence[Any]) -> Any:
        """The first of the calls that is ready; None if the time is up."""
        asks = bool(self.actors) and not self.is_last
        poll_s = min(LONGEST_POLL_S, self.deadline_s / POLLS_PER_DEADLINE)
        while True:
            left = max(0.0, self.until - time.monotonic())
            ready = ray.wait([*refs], timeout=min(left, poll_s) if asks else left)[0]
            if ready:
                if not self.is_last:
                    self.restart()
                return ready[0]
            if asks and self._has_advanced():
                self.restart()
            elif time.monotonic() >= self.until:
                return None

    def _has_advanced(self) -> bool:
        """Whether any count differs from the one of the last poll. A worker that does not answer is asked only once."""
        for index, actor in enumerate(self.actors):
            if index not in self.questions:
                self.questions[index] = actor.progress.options(concurrency_group=PROGRESS_GROUP).remote()
        ray.wait([*self.questions.values()], num_returns=len(self.questions), timeout=ANSWER_S)
        has_advanced = False
        for index, question in list(self.questions.items()):
            try:
                count = ray.get(question, timeout=0)
            except ray.exceptions.GetTimeoutError:
                continue
            except RayError:  # it died, which its call will say
                del self.questions[index]
                continue
            del self.questions[index]
            has_advanced |= self.counts.get(index, count) != count
            self.counts[index] = count
        return has_advanced
