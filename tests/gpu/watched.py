"""The command `rlhf-ray` with workers that write down the device's memory after each change of phase.

`python -m tests.gpu.watched train JOB.yaml ...`; the lines go to the file that the variable FILE names.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from rlhf_ray.cli import main
from rlhf_ray.learner.worker import LearnerWorker
from rlhf_ray.rollout.worker import RolloutWorker
from rlhf_ray.train import learner_group, workers

FILE = "RLHF_RAY_TEST_MEMORY"


def write_line(role, call, error=None):
    """What the device holds now, by all processes; ``error`` names what the call raised."""
    free, total = torch.cuda.mem_get_info()
    line = {"time": time.time(), "role": role, "call": call, "used_gib": (total - free) / 2**30, "error": error}
    with Path(os.environ[FILE]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def watched(method):
    """The method of a worker, with a line after each call."""

    def call(self, *args, **kwargs):
        error = None
        try:
            return method(self, *args, **kwargs)
        except Exception as raised:
            error = type(raised).__name__
            raise
        finally:
            write_line(type(self).__name__, method.__name__, error)

    return call


class WatchedLearner(LearnerWorker):
    """A learner rank that writes down the memory."""

    start = watched(LearnerWorker.start)
    keep_awake = watched(LearnerWorker.keep_awake)
    annotate = watched(LearnerWorker.annotate)
    update_on = watched(LearnerWorker.update_on)


class WatchedRollout(RolloutWorker):
    """A rollout worker that writes down the memory."""

    check = watched(RolloutWorker.check)
    keep_awake = watched(RolloutWorker.keep_awake)
    receive = watched(RolloutWorker.receive)


if __name__ == "__main__":
    from tests.gpu.watched import WatchedLearner, WatchedRollout  # not those of __main__, which no worker could import

    learner_group.LearnerWorker, workers.RolloutWorker = WatchedLearner, WatchedRollout
    sys.exit(main())
