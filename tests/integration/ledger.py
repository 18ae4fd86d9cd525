"""A pretend device: learner and rollout workers that book their bytes in a file, and fail where a real one would be full.

The workers are the real ones; a booking follows what each call would hold on a GPU. Gigabytes of a 7B model on one of eight
cards, roughly.
"""

import fcntl
import json
import os
from pathlib import Path

from rlhf_ray.learner.worker import LearnerWorker
from rlhf_ray.rollout.worker import RolloutWorker

LEARNER = {"weights": 15.0, "optimizer": 11.0, "reference": 15.0}
ACTIVATIONS = 20.0  # that the allocator reserves after a pass, until the cache is emptied
ENGINE = {"weights": 15.0, "kv_cache": 45.0}
VARIABLE = "RLHF_RAY_TEST_LEDGER"  # FILE:CAPACITY


def book(role: str, gigabytes: float) -> None:
    """Books what a role holds from now on. Raises MemoryError if all roles hold more than the device has."""
    file, capacity = os.environ[VARIABLE].rsplit(":", 1)
    with Path(file).open("a+") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        ledger.seek(0)
        entries = [json.loads(line) for line in ledger]
        held = {**(entries[-1] if entries else {}), role: gigabytes}
        ledger.write(json.dumps(held) + "\n")
    if sum(held.values()) > float(capacity):
        raise MemoryError(f"the pretend device of {capacity} GB is full: {held}")


class BookedLearner(LearnerWorker):
    """A rank that books its memory."""

    def start(self, *args):
        book("learner", sum(LEARNER.values()))
        return super().start(*args)

    def keep_awake(self, parts):
        moved = super().keep_awake(parts)
        book("learner", self._resident)
        return moved

    def annotate(self, *args):
        book("learner", self._resident + ACTIVATIONS)
        return super().annotate(*args)

    def update_on(self, *args):
        book("learner", self._resident + ACTIVATIONS)
        return super().update_on(*args)

    @property
    def _resident(self) -> float:
        return sum(LEARNER[part] for part in self.residency.awake)


class BookedRollout(RolloutWorker):
    """A rollout worker that books its engine's memory."""

    def check(self):
        book("engine", sum(ENGINE.values()))
        return super().check()

    def keep_awake(self, parts, keep_weights=True):
        super().keep_awake(parts, keep_weights)
        book("engine", sum(ENGINE[part] for part in parts))
